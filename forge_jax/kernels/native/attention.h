// Softmax attention of new tokens over the slots that they see, for grouped heads, in float32.
//
// Blocks of the queries of a kv head meet its keys and values together, those of several tokens as those of a group of
// heads: a slot that any of them sees is read once, and hidden from the others by their scores. A slot that none sees
// costs nothing.
//
// Slots are looked at in stretches of a fixed length, each with a maximum of its own, whose results are then brought
// together: blocks and stretches are shared among threads, and no number depends on how.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "pool.h"
#include "slabs.h"

namespace forge {

constexpr int STRETCH = 128;   // slots
constexpr int STRETCHES = 16;  // that a block looks at in turn where there are several blocks
constexpr int VECTORS = 3;     // of queries that meet opened keys together
constexpr int BLOCK = 2 * VECTORS * WIDTH;  // queries of a kv head, at most
constexpr int QUERIES = 4;  // that meet a key together where there are few
constexpr int FEW = 8;      // queries of a block; of more, each has a lane of a vector
constexpr float HIDDEN = -1e30f;
constexpr float LEAST = -1e29f;  // what the largest of no scores is: those that are HIDDEN weigh nothing beside it
constexpr int64_t LITTLE = 1 << 14;  // numbers to read that are not worth a second thread

// Tokens to look at: keys and values [P, K, page, *], what each new token sees of the slots of its row [B, T, S],
// and for pages that are shared the table [B, entries] of those of each row, which are `pages` in all.
struct Tokens {
  Slab k, v;
  const bool* seen;
  const int32_t* table;
  int64_t slots, page, pages;
};

struct Attention {
  const float *q, *sinks;  // [B, T, N, H], [N] or none
  float* y;                // [B, T, N, width]
  std::vector<Tokens> parts;
  int64_t batch, tokens, heads, group, size, width;  // kv heads, queries a kv head and token, features of keys and values
  float scale, softcap;                              // 0: no cap

  // Of a kv head.
  int64_t queries() const { return tokens * group; }

  // Which of all [B, T, N] one of them is.
  int64_t query(int64_t row, int64_t head, int64_t n) const {
    return ((row * tokens + n / group) * heads + head) * group + n % group;
  }

  // What comes of some slots for a query: a maximum, a sum of weights, and weighted values.
  int64_t found() const { return 2 + width; }
};

// Some queries of a kv head of a row.
struct Block {
  int64_t row, head, first, count;
};

// The slots of a stretch that any token of a block sees, and where they are in the slabs. The first `whole` are seen by all.
struct Sight {
  int count = 0, whole = 0;
  int64_t slots[STRETCH], places[STRETCH];
};

inline void list(const Attention& a, const Tokens& t, const Block& b, int64_t from, Sight& sight) {
  const int64_t end = std::min<int64_t>(from + STRETCH, t.slots), entries = t.slots / t.page, count = end - from;
  const int64_t token = b.first / a.group, tokens = (b.first + b.count - 1) / a.group - token + 1;
  alignas(64) uint8_t any[STRETCH] = {}, every[STRETCH];
  std::fill(every, every + STRETCH, 1);
  for (int64_t i = 0; i < tokens; ++i) {
    const bool* const seen = t.seen + (b.row * a.tokens + token + i) * t.slots + from;
    for (int64_t s = 0; s < count; ++s) any[s] |= seen[s], every[s] &= seen[s];
  }
  for (int64_t entry = from / t.page; entry * t.page < end; ++entry) {
    const int64_t page = t.table ? std::clamp<int64_t>(t.table[b.row * entries + entry], 0, t.pages - 1) : b.row;
    const int64_t first = entry * t.page, place = (page * a.heads + b.head) * t.page - first;
    for (int64_t s = std::max(from, first); s < std::min(end, first + t.page); ++s)
      if (any[s - from]) {
        sight.whole += every[s - from] && sight.whole == sight.count;
        sight.slots[sight.count] = s, sight.places[sight.count++] = place + s;
      }
  }
}

// Asks for the head and token at `place`, which is read soon.
inline void ask(const Slab& s, int64_t place) {
  const int64_t bytes = s.bytes();
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(s.numbers + place * bytes + at);
}

// Products of queries and keys as scores.
inline Floats scored(const Attention& a, Floats product) {
  const Floats z = product * all(a.scale);
  return a.softcap == 0 ? z : all(a.softcap) * tangent(z / all(a.softcap));
}

// The scores [N, STRETCH] of N queries at `count` places, WIDTH keys at a time; those of no key are HIDDEN. Values of the
// same tokens are asked for meanwhile.
template <Kind kind, int N>
void scores(const Attention& a, const Slab& k, const Slab& v, const float* const* q, const int64_t* places, int count,
            float* z) {
  for (int i = 0; i < count; i += WIDTH) {
    const int some = std::min(WIDTH, count - i);
    Floats apart[N][WIDTH];
    for (int j = 0; j < some; ++j) {
      ask(v, places[i + j]);
      Floats sums[N] = {};
#pragma GCC unroll 4
      for (int64_t h = 0; h < a.size; h += WIDTH) {
        const Floats key = opened<kind>(k, places[i + j], h);
        for (int n = 0; n < N; ++n) sums[n] += load(q[n] + h) * key;
      }
      for (int n = 0; n < N; ++n) apart[n][j] = sums[n];
    }
    for (int n = 0; n < N; ++n) {
      for (int j = some; j < WIDTH; ++j) apart[n][j] = Floats{};
      float* const to = z + n * STRETCH + i;
      store(to, scored(a, totals(apart[n])));
      std::fill(to + some, to + WIDTH, HIDDEN);
    }
  }
}

// Hides from `queries` from `first` on what their tokens do not see: scores z[n * across + i * along].
inline void hide(const Attention& a, const Tokens& t, const Sight& sight, int64_t row, int64_t first, int64_t queries,
                 int64_t across, int64_t along, float* z) {
  for (int64_t n = 0; n < queries && sight.whole < sight.count; ++n) {
    const bool* const seen = t.seen + (row * a.tokens + (first + n) / a.group) * t.slots;
    for (int i = sight.whole; i < sight.count; ++i)
      if (!seen[sight.slots[i]]) z[n * across + i * along] = HIDDEN;
  }
}

// Scores [N, STRETCH] become weights; the largest and the sum of each query's go to `found`.
inline void weights(const Attention& a, int queries, int count, float* z, float* found) {
  for (int n = 0; n < queries; ++n, z += STRETCH, found += a.found()) {
    Floats most = all(LEAST), sum{};
    for (int i = 0; i < count; i += WIDTH) most = load(z + i) > most ? load(z + i) : most;
    float top = LEAST;
    for (int i = 0; i < WIDTH; ++i) top = std::max(top, most[i]);
    for (int i = 0; i < count; i += WIDTH) {
      const Floats weight = exponential(load(z + i) - all(top));
      sum += weight;
      store(z + i, weight);
    }
    found[0] = top, found[1] = total(sum);
  }
}

// Weights z[n * ACROSS + i * ALONG] times values for the places listed, FEATURES vectors of which are summed in registers.
template <Kind kind, int N, int FEATURES, int ACROSS, int ALONG>
void weigh(const Attention& a, const Slab& v, int64_t h, const int64_t* places, int count, const float* z, float* y) {
  Floats sums[N][FEATURES] = {};
  for (int i = 0; i < count; ++i)
    for (int f = 0; f < FEATURES; ++f) {
      const Floats value = opened<kind>(v, places[i], h + f * WIDTH);
      for (int n = 0; n < N; ++n) sums[n][f] += all(z[n * ACROSS + i * ALONG]) * value;
    }
  for (int n = 0; n < N; ++n)
    for (int f = 0; f < FEATURES; ++f) store(y + n * a.found() + h + f * WIDTH, sums[n][f]);
}

// The same for all features, FEATURES vectors at a time.
template <Kind kind, int N, int FEATURES, int ACROSS, int ALONG>
void weigh_all(const Attention& a, const Slab& v, const int64_t* places, int count, const float* z, float* y) {
  int64_t h = 0;
  for (; h + FEATURES * WIDTH <= a.width; h += FEATURES * WIDTH)
    weigh<kind, N, FEATURES, ACROSS, ALONG>(a, v, h, places, count, z, y);
  for (; h < a.width; h += WIDTH) weigh<kind, N, 1, ACROSS, ALONG>(a, v, h, places, count, z, y);
}

// Calls run with n, at most QUERIES, as a constant.
template <class Run>
void of_few(int64_t n, Run run) {
  switch (n) {
    case 1: return run(std::integral_constant<int, 1>());
    case 2: return run(std::integral_constant<int, 2>());
    case 3: return run(std::integral_constant<int, 3>());
    default: return run(std::integral_constant<int, QUERIES>());
  }
}

// What N queries of a row and kv head from `first` on find in a stretch.
template <int N>
void look(const Attention& a, const Tokens& t, const Sight& sight, int64_t row, int64_t head, int64_t first, float* found) {
  const float* q[N];
  for (int n = 0; n < N; ++n) q[n] = a.q + a.query(row, head, first + n) * a.size;
  float z[N * STRETCH];
  of_kind(t.k.kind, [&](auto kind) { scores<kind(), N>(a, t.k, t.v, q, sight.places, sight.count, z); });
  hide(a, t, sight, row, first, N, STRETCH, 1, z);
  weights(a, N, sight.count, z, found);
  of_kind(t.v.kind, [&](auto kind) { weigh_all<kind(), N, 4, STRETCH, 1>(a, t.v, sight.places, sight.count, z, found + 2); });
}

// What is opened of a stretch: float32, by places.
struct Opened {
  Slab slab;
  const int64_t* places;

  const float* at(int i) const { return reinterpret_cast<const float*>(slab.numbers) + places[i] * slab.size; }
};

// Many queries share what is opened: float32 where it lies, others in `to` [STRETCH, *].
inline Opened open(const Slab& s, const Sight& sight, float* to) {
  static const auto row = [] {
    std::array<int64_t, STRETCH> row;
    std::iota(row.begin(), row.end(), 0);
    return row;
  }();
  if (s.kind == Kind::F32) return {s, sight.places};
  of_kind(s.kind, [&](auto kind) {
    for (int i = 0; i < sight.count; ++i)
      for (int64_t h = 0; h < s.size; h += WIDTH) store(to + i * s.size + h, opened<kind()>(s, sight.places[i], h));
  });
  return {{Kind::F32, reinterpret_cast<const uint8_t*>(to), nullptr, s.size, 0, 0}, row.data()};
}

// Scores [STRETCH, M * WIDTH] of queries [M, H, WIDTH].
template <int M>
void scores(const Attention& a, const float* q, const Opened& k, int count, float* z) {
  constexpr int TOGETHER = WIDTH == 16 ? 8 : 4;  // keys: sums stay in registers
  for (int i = 0; i < count; i += TOGETHER) {
    Floats sums[TOGETHER][M] = {};
    const float* keys[TOGETHER];
    for (int j = 0; j < TOGETHER; ++j) keys[j] = k.at(std::min(i + j, count - 1));
    for (int64_t h = 0; h < a.size; ++h)
      for (int j = 0; j < TOGETHER; ++j)
        for (int m = 0; m < M; ++m) sums[j][m] += load(q + (m * a.size + h) * WIDTH) * all(keys[j][h]);
    for (int j = 0; j < TOGETHER; ++j)
      for (int m = 0; m < M; ++m) store(z + ((i + j) * M + m) * WIDTH, scored(a, sums[j][m]));
  }
}

// Scores [STRETCH, M * WIDTH] become weights; the largest and the sum of each query's go to `found`.
template <int M>
void weights(const Attention& a, int64_t queries, int count, float* z, float* found) {
  for (int m = 0; m < M; ++m) {
    Floats most = all(LEAST), sum{};
    for (int i = 0; i < count; ++i) {
      const Floats score = load(z + (i * M + m) * WIDTH);
      most = score > most ? score : most;
    }
    for (int i = 0; i < count; ++i) {
      const Floats weight = exponential(load(z + (i * M + m) * WIDTH) - most);
      sum += weight;
      store(z + (i * M + m) * WIDTH, weight);
    }
    for (int64_t n = m * WIDTH; n < std::min<int64_t>(queries, (m + 1) * WIDTH); ++n)
      found[n * a.found()] = most[n % WIDTH], found[n * a.found() + 1] = sum[n % WIDTH];
  }
}

// What up to M * WIDTH queries from `first` on find among opened keys and values. q: [M, H, WIDTH].
template <int M>
void look(const Attention& a, const Tokens& t, const Sight& sight, const Block& b, const float* q, const Opened& k,
          const Opened& v, float* found) {
  constexpr int TOGETHER = WIDTH == 16 ? 12 : 6;  // queries: sums stay in registers
  alignas(64) float z[STRETCH * M * WIDTH];
  scores<M>(a, q, k, sight.count, z);
  hide(a, t, sight, b.row, b.first, b.count, 1, M * WIDTH, z);
  weights<M>(a, b.count, sight.count, z, found);
  int64_t n = 0;
  auto some = [&](auto count) {
    weigh_all<Kind::F32, count(), 2, 1, M * WIDTH>(a, v.slab, v.places, sight.count, z + n, found + n * a.found() + 2);
    n += count();
  };
  while (n + TOGETHER <= b.count) some(std::integral_constant<int, TOGETHER>());
  while (n < b.count) of_few(b.count - n, some);
}

// What a thread needs for a block: [BLOCK / WIDTH, H, WIDTH], [STRETCH, *] and [STRETCH, *], [BLOCK, found].
struct Room {
  float *q, *k, *v, *found;
};

inline Room room(const Attention& a) {
  static thread_local std::vector<float> space;
  const int64_t own = BLOCK * a.size, keys = STRETCH * a.size, values = STRETCH * a.width;
  const size_t size = own + keys + values + BLOCK * a.found() + 16;
  if (space.size() < size) space.resize(size);
  float* const q = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(space.data()) + 63) / 64 * 64);
  return {q, q + own, q + own + keys, q + own + keys + values};
}

// The queries of a block, each in a lane: [vectors, H, WIDTH].
inline void in_lanes(const Attention& a, const Block& b, float* to) {
  for (int64_t n = 0; n < b.count; n += WIDTH)
    for (int64_t h = 0; h < a.size; h += WIDTH, to += WIDTH * WIDTH) {
      Floats some[WIDTH] = {};
      for (int64_t i = 0; i < std::min<int64_t>(WIDTH, b.count - n); ++i)
        some[i] = load(a.q + a.query(b.row, b.head, b.first + n + i) * a.size + h);
      transpose(some);
      for (int i = 0; i < WIDTH; ++i) store(to + i * WIDTH, some[i]);
    }
}

// What a block finds in a stretch: [count, found].
inline void look(const Attention& a, const Tokens& t, const Block& b, const Sight& sight, const Room& room, float* found) {
  if (b.count <= FEW) {
    for (int64_t n = 0; n < b.count; n += QUERIES)
      of_few(b.count - n, [&](auto some) { look<some()>(a, t, sight, b.row, b.head, b.first + n, found + n * a.found()); });
    return;
  }
  const Opened k = open(t.k, sight, room.k), v = open(t.v, sight, room.v);
  for (int64_t n = 0; n < b.count; n += VECTORS * WIDTH) {
    const Block own{b.row, b.head, b.first + n, std::min<int64_t>(VECTORS * WIDTH, b.count - n)};
    of_few((own.count + WIDTH - 1) / WIDTH, [&](auto vectors) {
      if constexpr (vectors() <= VECTORS)
        look<vectors()>(a, t, sight, own, room.q + n * a.size, k, v, found + n * a.found());
    });
  }
}

// Adds what a query found elsewhere.
inline void add(const Attention& a, float* found, const float* other) {
  if (other[1] == 0) return;  // nothing was seen
  const float top = std::max(found[0], other[0]);
  const float own = exponential(all(found[0] - top))[0], part = exponential(all(other[0] - top))[0];
  found[0] = top, found[1] = own * found[1] + part * other[1];
  for (int64_t h = 2; h < a.found(); h += WIDTH)
    store(found + h, load(found + h) * all(own) + load(other + h) * all(part));
}

// Slots from `from` on, at most STRETCH of them.
struct Stretch {
  const Tokens* tokens;
  int64_t from;
};

// What a block finds in all of some stretches: [queries, found].
inline void look(const Attention& a, const Block& b, const Stretch* stretches, int64_t count, float* found) {
  const Room own = room(a);
  bool any = false;
  for (int64_t i = 0; i < count; ++i) {
    Sight sight;
    list(a, *stretches[i].tokens, b, stretches[i].from, sight);
    if (sight.count == 0) continue;
    if (!any && b.count > FEW) in_lanes(a, b, own.q);
    look(a, *stretches[i].tokens, b, sight, own, any ? own.found : found);
    for (int64_t n = 0; any && n < b.count; ++n) add(a, found + n * a.found(), own.found + n * a.found());
    any = true;
  }
  if (any) return;
  std::fill(found, found + b.count * a.found(), 0.0f);
  for (int64_t n = 0; n < b.count; ++n) found[n * a.found()] = LEAST;
}

// Brings what query n found in all runs [count, queries, found] together: values over the sum of all weights, and of the
// sink's.
inline void join(const Attention& a, int64_t row, int64_t head, int64_t n, float* found, int64_t count) {
  for (int64_t i = 1; i < count; ++i) add(a, found, found + i * a.queries() * a.found());
  float top = found[0], sum = found[1], part = 1;
  if (a.sinks) {
    const float sink = a.sinks[head * a.group + n % a.group];
    top = std::max(top, sink);
    part = std::exp(found[0] - top);
    sum = part * sum + std::exp(sink - top);
  }
  float* const y = a.y + a.query(row, head, n) * a.width;
  for (int64_t h = 0; h < a.width; ++h) y[h] = sum > 0 ? part * found[2 + h] / sum : 0;  // 0 where nothing is seen
}

inline void attend(Attention& a) {
  std::vector<Stretch> stretches;
  int64_t slots = 0;
  for (const Tokens& t : a.parts) {
    for (int64_t from = 0; from < t.slots; from += STRETCH) stretches.push_back({&t, from});
    slots += t.slots;
  }
  const int64_t count = stretches.size(), pairs = a.batch * a.heads, queries = a.queries();
  const int64_t blocks = (queries + BLOCK - 1) / BLOCK, each = blocks > 1 ? STRETCHES : 1, runs = (count + each - 1) / each;
  const int64_t size = queries * a.found(), jobs = pairs * runs * blocks;
  std::unique_ptr<float[]> found(new float[pairs * runs * size]);
  auto some = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t pair = i / (runs * blocks), run = i / blocks % runs, first = i % blocks * BLOCK;
      const Block block{pair / a.heads, pair % a.heads, first, std::min<int64_t>(BLOCK, queries - first)};
      look(a, block, &stretches[run * each], std::min(each, count - run * each),
           &found[(pair * runs + run) * size + first * a.found()]);
    }
  };
  const bool little = slots * pairs * blocks * (a.size + a.width) < LITTLE;
  parallel(jobs, little ? 1 : 64 * threads(), some);
  auto joined = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t pair = i / queries, n = i % queries;
      join(a, pair / a.heads, pair % a.heads, n, &found[pair * runs * size + n * a.found()], runs);
    }
  };
  parallel(pairs * queries, pairs * runs * size < LITTLE ? 1 : threads(), joined);
}

}  // namespace forge
