// Softmax attention of a few new tokens a row over the slots that they see, for grouped heads, in float32.
//
// All queries of a kv head meet its keys and values together, those of several tokens as those of a group of heads: a slot
// that any token sees is read once, and hidden from the others by their scores.
//
// Slots are looked at in stretches of a fixed length, each with a maximum of its own, whose results are then brought
// together: stretches are shared among threads, and no number depends on how.
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

constexpr int STRETCH = 128;  // slots
constexpr int QUERIES = 4;    // of a kv head that meet an opened key together
constexpr int FEW = 8;        // queries of a kv head; of more, each has a lane of a vector
constexpr int MOST = 64;      // new tokens a row
constexpr float HIDDEN = -1e30f;
constexpr float LEAST = -1e29f;  // what the largest of no scores is: those that are HIDDEN weigh nothing beside it
constexpr int64_t LITTLE = 1 << 14;  // numbers to read that are not worth a second thread

// e^x for x <= 0; below -87 it is 0. Cephes' polynomial, within 2 units in the last place.
inline Floats exponential(Floats x) {
  const Ints few = x < all(-87.0f);
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Ints n = __builtin_convertvector(x * all(1.44269504f) - all(0.5f), Ints);
  const Floats m = floats(n), r = (x - m * all(0.693359375f)) + m * all(2.12194440e-4f);
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + all(c);
  p = p * r * r + r + all(1.0f);
  return bits(reinterpret_cast<Ints>(p * bits((n + 127) << 23)) & ~few);
}

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
  std::unique_ptr<float[]> lanes;                    // of many: [B, heads, vectors, H, WIDTH]

  // Of a kv head.
  int64_t queries() const { return tokens * group; }

  int64_t vectors() const { return (queries() + WIDTH - 1) / WIDTH; }

  // Which of all [B, T, N] one of them is.
  int64_t query(int64_t row, int64_t head, int64_t n) const {
    return ((row * tokens + n / group) * heads + head) * group + n % group;
  }

  // What came of a stretch for a query: a maximum, a sum of weights, and weighted values.
  int64_t found() const { return 2 + width; }
};

// The slots of a stretch that any new token of a row sees, and where they are in the slabs.
struct Sight {
  int count = 0;
  uint64_t partly = 0;  // a bit for each token: whether some of those are hidden from it
  int64_t slots[STRETCH], places[STRETCH];
};

inline void list(const Attention& a, const Tokens& t, int64_t row, int64_t head, int64_t from, Sight& sight) {
  const int64_t end = std::min<int64_t>(from + STRETCH, t.slots), entries = t.slots / t.page;
  const bool* const seen = t.seen + row * a.tokens * t.slots;
  for (int64_t entry = from / t.page; entry * t.page < end; ++entry) {
    const int64_t page = t.table ? std::clamp<int64_t>(t.table[row * entries + entry], 0, t.pages - 1) : row;
    const int64_t first = entry * t.page, place = (page * a.heads + head) * t.page - first;
    const int64_t stop = std::min(end, first + t.page);
    for (int64_t s = std::max(from, first); s < stop; s += 8) {
      const int64_t some = std::min<int64_t>(8, stop - s);
      uint64_t any = 0;  // eight at a time, since most are hidden or seen in long runs
      for (int64_t token = 0; token < a.tokens; ++token) {
        uint64_t one = 0;
        some == 8 ? std::memcpy(&one, seen + token * t.slots + s, 8) : std::memcpy(&one, seen + token * t.slots + s, some);
        any |= one;
      }
      const auto* const shown = reinterpret_cast<const uint8_t*>(&any);
      for (int64_t i = 0; any && i < some; ++i)
        if (shown[i]) sight.slots[sight.count] = s + i, sight.places[sight.count++] = place + s + i;
    }
  }
  for (int64_t token = 0; a.tokens > 1 && token < a.tokens; ++token) {
    int count = 0;
    for (int64_t s = from; s < end; ++s) count += seen[token * t.slots + s];
    if (count != sight.count) sight.partly |= uint64_t{1} << token;
  }
}

// Asks for the head and token at `place`, which is read soon.
inline void ask(const Slab& s, int64_t place) {
  const int64_t bytes = s.bytes();
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(s.numbers + place * bytes + at);
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
      store(to, totals(apart[n]) * all(a.scale));
      for (int j = 0; j < some && a.softcap != 0; ++j) to[j] = a.softcap * std::tanh(to[j] / a.softcap);
      std::fill(to + some, to + WIDTH, HIDDEN);
    }
  }
}

// Hides from `queries` from `first` on what their tokens do not see: scores z[n * across + i * along].
inline void hide(const Attention& a, const Tokens& t, const Sight& sight, int64_t row, int64_t first, int64_t queries,
                 int64_t across, int64_t along, float* z) {
  for (int64_t n = 0; n < queries && sight.partly; ++n) {
    const int64_t token = (first + n) / a.group;
    const bool* const seen = t.seen + (row * a.tokens + token) * t.slots;
    for (int i = 0; i < sight.count && (sight.partly >> token & 1); ++i)
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

// The same for all features.
template <Kind kind, int N, int ACROSS, int ALONG>
void weigh(const Attention& a, const Slab& v, const int64_t* places, int count, const float* z, float* y) {
  int64_t h = 0;
  for (; h + 4 * WIDTH <= a.width; h += 4 * WIDTH) weigh<kind, N, 4, ACROSS, ALONG>(a, v, h, places, count, z, y);
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
  of_kind(t.v.kind, [&](auto kind) { weigh<kind(), N, STRETCH, 1>(a, t.v, sight.places, sight.count, z, found + 2); });
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
      for (int m = 0; m < M; ++m) store(z + ((i + j) * M + m) * WIDTH, sums[j][m] * all(a.scale));
  }
  for (int64_t i = 0; i < count * M * WIDTH && a.softcap != 0; ++i) z[i] = a.softcap * std::tanh(z[i] / a.softcap);
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

// What up to M * WIDTH queries from `first` on find among opened keys and values.
template <int M>
void look(const Attention& a, const Tokens& t, const Sight& sight, int64_t row, int64_t head, int64_t first, const Opened& k,
          const Opened& v, float* found) {
  const int64_t queries = std::min<int64_t>(M * WIDTH, a.queries() - first);
  float z[STRETCH * M * WIDTH];
  scores<M>(a, a.lanes.get() + ((row * a.heads + head) * a.vectors() * WIDTH + first) * a.size, k, sight.count, z);
  hide(a, t, sight, row, first, queries, 1, M * WIDTH, z);
  weights<M>(a, queries, sight.count, z, found);
  for (int64_t n = 0; n < queries; n += QUERIES)
    of_few(queries - n, [&](auto some) {
      weigh<Kind::F32, some(), 1, M * WIDTH>(a, v.slab, v.places, sight.count, z + n, found + n * a.found() + 2);
    });
}

// What the queries of one kv head find in a stretch: [queries, found].
inline void look(const Attention& a, const Tokens& t, int64_t row, int64_t head, int64_t from, float* found) {
  Sight sight;
  list(a, t, row, head, from, sight);
  const int64_t queries = a.queries();
  if (sight.count == 0) {
    std::fill(found, found + queries * a.found(), 0.0f);
    for (int64_t n = 0; n < queries; ++n) found[n * a.found()] = LEAST;
  } else if (queries <= FEW) {
    for (int64_t n = 0; n < queries; n += QUERIES)
      of_few(queries - n, [&](auto some) { look<some()>(a, t, sight, row, head, n, found + n * a.found()); });
  } else {
    static thread_local std::vector<float> room;
    room.resize(STRETCH * (a.size + a.width));
    const Opened k = open(t.k, sight, room.data()), v = open(t.v, sight, room.data() + STRETCH * a.size);
    for (int64_t n = 0; n < queries; n += 2 * WIDTH, found += 2 * WIDTH * a.found())
      queries - n > WIDTH ? look<2>(a, t, sight, row, head, n, k, v, found)
                          : look<1>(a, t, sight, row, head, n, k, v, found);
  }
}

// Brings what query n found in all stretches [count, queries, found] together: values over the sum of all weights, and of
// the sink's.
inline void join(const Attention& a, int64_t row, int64_t head, int64_t n, const float* found, int64_t count) {
  const int64_t step = a.queries() * a.found();
  const float* const sink = a.sinks ? a.sinks + head * a.group + n % a.group : nullptr;
  float top = sink ? std::max(*sink, LEAST) : LEAST;
  for (int64_t i = 0; i < count; ++i) top = std::max(top, found[i * step]);
  float sum = sink ? std::exp(*sink - top) : 0;
  float* const y = a.y + a.query(row, head, n) * a.width;
  std::fill(y, y + a.width, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* const from = found + i * step;
    if (from[1] == 0) continue;  // nothing was seen
    const float part = std::exp(from[0] - top);
    sum += part * from[1];
    for (int64_t h = 0; h < a.width; ++h) y[h] += part * from[2 + h];
  }
  for (int64_t h = 0; h < a.width && sum > 0; ++h) y[h] /= sum;  // 0 where nothing is seen
}

// Queries that are many, each in a lane.
inline std::unique_ptr<float[]> in_lanes(const Attention& a) {
  const int64_t pairs = a.batch * a.heads, each = a.vectors() * WIDTH;
  std::unique_ptr<float[]> lanes(new float[pairs * each * a.size]());
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int64_t n = 0; n < a.queries(); ++n) {
      const float* const q = a.q + a.query(pair / a.heads, pair % a.heads, n) * a.size;
      float* const to = lanes.get() + (pair * each + n / WIDTH * WIDTH) * a.size + n % WIDTH;
      for (int64_t h = 0; h < a.size; ++h) to[h * WIDTH] = q[h];
    }
  return lanes;
}

inline void attend(Attention& a) {
  struct Stretch {
    const Tokens* tokens;
    int64_t from;
  };
  std::vector<Stretch> stretches;
  int64_t slots = 0;
  for (const Tokens& t : a.parts) {
    for (int64_t from = 0; from < t.slots; from += STRETCH) stretches.push_back({&t, from});
    slots += t.slots;
  }
  const int64_t count = stretches.size(), pairs = a.batch * a.heads, queries = a.queries(), size = queries * a.found();
  if (queries > FEW) a.lanes = in_lanes(a);
  std::unique_ptr<float[]> found(new float[pairs * count * size]);
  auto some = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Stretch& s = stretches[i % count];
      look(a, *s.tokens, i / count / a.heads, i / count % a.heads, s.from, &found[i * size]);
    }
  };
  const bool little = slots * pairs * (a.size + a.width) < LITTLE;
  parallel(pairs * count, little ? 1 : 64 * threads(), some);
  auto joined = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t pair = i / queries, n = i % queries;
      join(a, pair / a.heads, pair % a.heads, n, &found[pair * count * size + n * a.found()], count);
    }
  };
  parallel(pairs * queries, pairs * count * size < LITTLE ? 1 : threads(), joined);
}

}  // namespace forge
