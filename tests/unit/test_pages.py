"""Pages and who uses them: no page is lost, none has two writers, and what is found is what was put down."""

import random

import pytest

from forge_jax.cache.pages import Pages, Rows, keys

PAGE = 4


class Model:
    """Rows as lists of tokens, and pages as what was written on them: what `Rows` must agree with."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.texts, self.paper = rows, dict[int, list[int]](), dict[int, list[int]]()

    def write(self, row: int, start: int) -> None:
        """Put the tokens of a row from `start` on onto its pages, which must be nobody else's."""
        for at in range(start, len(self.texts[row])):
            page = self.rows.tables[row][at // PAGE % self.rows.width]
            slots = self.paper.setdefault(page, [-1] * PAGE)
            slots[at % PAGE] = self.texts[row][at]

    def admit(self, tokens: list[int]) -> None:
        row = self.rows.admit(tokens)
        self.texts[row] = tokens
        self.write(row, 0)

    def append(self, row: int, tokens: list[int]) -> None:
        start = len(self.texts[row])
        for source, target in self.rows.own(row, start, start + len(tokens)):
            self.paper[target] = list(self.paper[source])
        for at in range(start, start + len(tokens)):
            assert self.rows.pool.users[self.rows.tables[row][at // PAGE % self.rows.width]] == 1
        self.texts[row] = self.texts[row] + tokens
        self.write(row, start)

    def fork(self, row: int) -> None:
        self.texts[self.rows.fork(row)] = list(self.texts[row])

    def cut(self, row: int, length: int) -> None:
        self.rows.cut(row, length)
        self.texts[row] = self.texts[row][:length]

    def free(self, row: int) -> None:
        self.rows.free(row)
        del self.texts[row]

    def check(self) -> None:
        pool, used = self.rows.pool, dict[int, int]()
        for row, text in self.texts.items():
            for page in self.rows.tables[row]:
                used[page] = used.get(page, 0) + 1
            held = self.rows.width * PAGE
            for at in range(max(0, len(text) - held), len(text)):
                page = self.rows.tables[row][at // PAGE % self.rows.width]
                assert self.paper[page][at % PAGE] == text[at]
        assert [used.get(page, 0) for page in range(len(pool.users))] == pool.users
        assert set(pool.free) == {page for page, users in enumerate(pool.users) if not users}
        assert {page: key for key, page in pool.found.items()} == pool.keys


@pytest.mark.parametrize("ring", [False, True])
def test_ten_thousand_steps_lose_no_page(ring: bool):
    chance = random.Random(ring)
    model = Model(Rows(Pages(40), PAGE, 3 if ring else 12, ring))
    done = dict.fromkeys(("admit", "append", "fork", "cut", "free"), 0)
    refused = 0
    for step in range(10_000):
        kind = chance.choice(list(done)) if model.texts else "admit"
        row = chance.choice(list(model.texts)) if model.texts else 0
        try:
            match kind:
                case "admit":
                    model.admit([chance.randrange(2)] * chance.randrange(6) + [7] * chance.randrange(1, 40))
                case "append" if ring or len(model.texts[row]) < 40:
                    model.append(row, [chance.randrange(9) for _ in range(chance.randrange(1, 8))])
                case "fork":
                    model.fork(row)
                case "cut" if not ring:
                    model.cut(row, chance.randrange(len(model.texts[row]) + 1))
                case "free":
                    model.free(row)
            done[kind] += 1
        except ValueError:
            refused += 1
            for old in list(model.texts)[::2]:
                model.free(old)
        if step % 10 == 0:
            model.check()
    assert min(done.values()) > 500
    assert refused > 10
    for row in list(model.texts):
        model.free(row)
    model.check()
    assert model.rows.pool.used == 0


def test_a_prefix_is_shared_and_found_until_its_room_is_needed():
    pool = Pages(4)
    rows = Rows(pool, PAGE, 4)
    text = list(range(10))
    first, second = rows.admit(text), rows.admit([*text[:8], 99])
    assert rows.tables[first][:2] == rows.tables[second][:2]
    assert pool.used == 4
    rows.free(first)
    rows.free(second)
    assert pool.used == 0
    found = [pool.find(key) for key in keys(text, PAGE)]
    third = rows.admit(text)
    assert rows.tables[third][:2] == found
    rows.free(third)
    rows.admit([5] * 12)  # the page without a key, then those given up longest ago: the end of a text first
    assert [pool.find(key) is None for key in keys(text, PAGE)] == [False, True]


def test_what_is_written_on_is_found_no_more():
    rows = Rows(Pages(4), PAGE, 4)
    row = rows.admit([1, 2, 3, 4, 5])
    (key,) = keys([1, 2, 3, 4], PAGE)
    assert rows.pool.find(key) == rows.tables[row][0]
    rows.cut(row, 2)
    assert rows.own(row, 2, 4) == []
    assert rows.pool.find(key) is None


def test_a_page_of_another_row_is_copied_before_it_is_written():
    rows = Rows(Pages(8), PAGE, 4)
    row = rows.admit([1, 2, 3, 4, 5])
    other = rows.fork(row)
    before = list(rows.tables[row])
    assert rows.own(other, 5, 6) == [(before[1], rows.tables[other][1])]
    assert rows.tables[row] == before
    assert rows.own(row, 5, 6) == []


def test_a_full_pool_says_so_and_changes_nothing():
    pool = Pages(3)
    rows = Rows(pool, PAGE, 8)
    rows.admit(list(range(8)))
    with pytest.raises(ValueError, match="2 more pages are needed, but 1 of 3 are free"):
        rows.admit(list(range(50, 58)))
    assert pool.used == 2
    assert len(rows.tables) == 1
    with pytest.raises(ValueError, match="is given back, but it is free"):
        Pages(1).release(0)
