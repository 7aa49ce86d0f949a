"""Which page holds which tokens of which row: bookkeeping on the host. Knows no arrays and no model.

A pool has so many pages; a row is a list of them, of which those at the front may be other rows' too. A page is
written by its only owner: `Rows.own` says which must be copied first. A whole page of a text may be put down under a
key of its tokens and of all before them, so that another row with the same beginning finds it, for as long as it is in
use or nobody needed the room.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Key = bytes


def page_key(parent: Key, tokens: Sequence[int]) -> Key:
    """The key of a page with these tokens after the page with key `parent`; the first page's parent is empty."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


def keys(tokens: Sequence[int], page: int, mark: int = 0) -> Iterator[Key]:
    """The keys of all whole pages of a text. `mark`: what else its numbers depend on, such as its adapter."""
    key = page_key(b"", [mark])
    for end in range(page, len(tokens) + 1, page):
        key = page_key(key, tokens[end - page : end])
        yield key


class Pages:
    """A pool of pages, each used by none, one or several rows."""

    def __init__(self, count: int) -> None:
        """All pages are free."""
        self.users: list[int] = []
        self.free: OrderedDict[int, None] = OrderedDict()  # the one given up longest ago first
        self.keys: dict[int, Key] = {}
        self.found: dict[Key, int] = {}
        self.grow(count)

    def grow(self, count: int) -> None:
        """Have at least so many pages."""
        for page in range(len(self.users), count):
            self.users.append(0)
            self.free[page] = None

    @property
    def used(self) -> int:
        """How many pages are in use."""
        return len(self.users) - len(self.free)

    def check(self, count: int) -> None:
        """Raise ValueError unless so many pages are free."""
        if count > len(self.free):
            raise ValueError(
                f"cache: {count} more pages are needed, but {len(self.free)} of {len(self.users)} are free; free rows, "
                "or make a larger pool"
            )

    def allocate(self) -> int:
        """A page for one user; what was put down on it longest ago is lost.

        Raises:
            ValueError: all pages are in use.
        """
        self.check(1)
        page, _ = self.free.popitem(last=False)
        self.forget(page)
        self.users[page] = 1
        return page

    def share(self, page: int) -> int:
        """One more user of a page, which may be free but not forgotten. Returns it."""
        self.free.pop(page, None)
        self.users[page] += 1
        return page

    def release(self, page: int) -> None:
        """One user less; a page without any is free, and taken last if it can still be found.

        Raises:
            ValueError: nobody uses it.
        """
        if not self.users[page]:
            raise ValueError(f"cache: page {page} is given back, but it is free")
        self.users[page] -= 1
        if not self.users[page]:
            self.free[page] = None
            if page not in self.keys:
                self.free.move_to_end(page, last=False)

    def forget(self, page: int) -> None:
        """What is on a page changes: it is found no more."""
        key = self.keys.pop(page, None)
        if key is not None:
            del self.found[key]

    def put_down(self, page: int, key: Key) -> None:
        """Let a page be found under a key; the first page of a key stays."""
        if key not in self.found and page not in self.keys:
            self.found[key], self.keys[page] = page, key

    def find(self, key: Key) -> int | None:
        """The page under a key."""
        return self.found.get(key)


@dataclass
class Rows:
    """The tables of all rows that share a pool. The token in slot s is in entry s // page of its row's table.

    Args:
        page: tokens a page.
        width: entries a row; a table that comes round is a ring.
        ring: whether tables may come round, so that no page is the same text for good.
        anchors: first tokens that stay where they are when it does.
    """

    pool: Pages
    page: int
    width: int
    ring: bool = False
    anchors: int = 0
    tables: list[list[int]] = field(default_factory=list)

    def admit(self, tokens: Sequence[int], mark: int = 0) -> int:
        """A new row with pages for a text, whose whole pages are those of others of its `mark` where they are the same.

        Returns the row's number.

        Raises:
            ValueError: too few pages are free; nothing has changed then.
        """
        every = [] if self.ring else list(keys(tokens, self.page, mark))
        found = [self.pool.find(key) for key in every]
        have = sum(page is not None for page in found)
        rest = min(-(-len(tokens) // self.page), self.width) - have
        self.pool.check(rest + sum(page is not None and not self.pool.users[page] for page in found))
        table = [page if page is None else self.pool.share(page) for page in found]  # before any of them is taken
        self.tables.append([self.pool.allocate() if page is None else page for page in table])
        for page, key in zip(self.tables[-1], every, strict=True):
            self.pool.put_down(page, key)
        self.own(len(self.tables) - 1, len(every) * self.page, len(tokens))
        return len(self.tables) - 1

    def slot(self, token: int) -> int:
        """Where a token of a row is, as `forge_jax.cache.dense.assign` says it."""
        first = self.anchors
        return token if token < first else first + (token - first) % (self.width * self.page - first)

    def lasting(self, start: int, stop: int) -> list[int]:
        """Of tokens start..stop those that no later one of them would overwrite."""
        since = stop - (self.width * self.page - self.anchors)
        return [*range(start, min(stop, self.anchors)), *range(max(start, since, self.anchors), stop)]

    def own(self, row: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Make the pages of tokens start..stop the row's own, so that they can be written.

        Returns pages to copy first: (from, to).

        Raises:
            ValueError: too few pages are free; nothing has changed then.
        """
        table, users = self.tables[row], self.pool.users
        written = sorted({self.slot(token) // self.page for token in self.lasting(start, stop)})
        new = max(written, default=-1) + 1 - len(table)
        others = [entry for entry in written if entry < len(table) and users[table[entry]] > 1]
        self.pool.check(max(new, 0) + len(others))
        for entry in written:
            if entry < len(table) and entry not in others:
                self.pool.forget(table[entry])
        copies = [(table[entry], self.pool.allocate()) for entry in others]
        for entry, (old, own) in zip(others, copies, strict=True):
            self.pool.release(old)
            table[entry] = own
        table.extend(self.pool.allocate() for _ in range(new))
        return copies

    def fork(self, row: int) -> int:
        """A new row with the pages of another. Returns its number."""
        self.tables.append([self.pool.share(page) for page in self.tables[row]])
        return len(self.tables) - 1

    def free(self, row: int) -> None:
        """Give back the pages of a row; its table is then empty."""
        for page in reversed(self.tables[row]):  # the end of a text is lost before its beginning
            self.pool.release(page)
        self.tables[row] = []

    def cut(self, row: int, length: int) -> None:
        """Give back the pages behind the first `length` tokens of a row whose table does not come round."""
        if self.ring:
            return
        table = self.tables[row]
        while len(table) > -(-length // self.page):
            self.pool.release(table.pop())
