// Softmax attention of one new token a row over the slots that it sees, for grouped heads, in float32.
//
// Slots are looked at in stretches of a fixed length, each with a maximum of its own, whose results are then brought
// together: stretches are shared among threads, and no number depends on how.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "pool.h"
#include "slabs.h"

namespace forge {

constexpr int STRETCH = 128;  // slots
constexpr int QUERIES = 4;    // of a kv head that meet an opened key together, at most
constexpr float HIDDEN = -1e30f;
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

// Tokens to look at: keys and values [P, K, page, *], what each row sees of its slots [B, S], and for pages that are
// shared the table [B, entries] of those of each row, which are `pages` in all.
struct Tokens {
  Slab k, v;
  const bool* seen;
  const int32_t* table;
  int64_t slots, page, pages;
};

struct Attention {
  const float *q, *sinks;  // [B, N, H], [N] or none
  float* y;                // [B, N, width]
  std::vector<Tokens> parts;
  int64_t batch, heads, group, size, width;  // kv heads, queries a kv head, features of keys and of values
  float scale, softcap;                      // 0: no cap

  // What came of a stretch for a query: a maximum, a sum of weights, and weighted values.
  int64_t found() const { return 2 + width; }
};

// Where in the slabs the slots of a stretch are that a row sees. Returns how many.
inline int listed(const Attention& a, const Tokens& t, int64_t row, int64_t head, int64_t from, int64_t* places) {
  const int64_t end = std::min<int64_t>(from + STRETCH, t.slots), entries = t.slots / t.page;
  const bool* const seen = t.seen + row * t.slots;
  int count = 0;
  for (int64_t entry = from / t.page; entry * t.page < end; ++entry) {
    const int64_t page = t.table ? std::clamp<int64_t>(t.table[row * entries + entry], 0, t.pages - 1) : row;
    const int64_t first = entry * t.page, place = (page * a.heads + head) * t.page - first;
    const int64_t stop = std::min(end, first + t.page);
    for (int64_t s = std::max(from, first); s < stop; ++s) {
      if (uint64_t eight = 0; s + 8 <= stop && (std::memcpy(&eight, seen + s, 8), eight == 0)) {
        s += 7;  // most are hidden or seen in long runs
        continue;
      }
      if (seen[s]) places[count++] = place + s;
    }
  }
  return count;
}

// Asks for the head and token at `place`, which is read soon.
inline void ask(const Slab& s, int64_t place) {
  const int64_t bytes = s.bytes();
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(s.numbers + place * bytes + at);
}

// The scores [N, STRETCH] of N queries at the places listed, WIDTH keys at a time; those of no key are HIDDEN. Values of
// the same tokens are asked for meanwhile.
template <Kind kind, int N>
void scores(const Attention& a, const Tokens& t, const float* q, const int64_t* places, int count, float* z) {
  for (int i = 0; i < count; i += WIDTH) {
    const int some = std::min(WIDTH, count - i);
    Floats apart[N][WIDTH];
    for (int j = 0; j < some; ++j) {
      ask(t.v, places[i + j]);
      Floats sums[N] = {};
#pragma GCC unroll 4
      for (int64_t h = 0; h < a.size; h += WIDTH) {
        const Floats key = opened<kind>(t.k, places[i + j], h);
        for (int n = 0; n < N; ++n) sums[n] += load(q + n * a.size + h) * key;
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

// Scores [N, STRETCH] become weights; the largest and the sum of each query's go to `found`.
inline void weights(const Attention& a, int queries, int count, float* z, float* found) {
  for (int n = 0; n < queries; ++n, z += STRETCH, found += a.found()) {
    Floats most = all(HIDDEN), sum{};
    for (int i = 0; i < count; i += WIDTH) most = load(z + i) > most ? load(z + i) : most;
    float top = HIDDEN;
    for (int i = 0; i < WIDTH; ++i) top = std::max(top, most[i]);
    for (int i = 0; i < count; i += WIDTH) {
      const Floats weight = exponential(load(z + i) - all(top));
      sum += weight;
      store(z + i, weight);
    }
    found[0] = top, found[1] = total(sum);
  }
}

// Weights [N, STRETCH] times values for the places listed, FEATURES vectors of which are summed in registers.
template <Kind kind, int N, int FEATURES>
void weigh(const Attention& a, const Slab& v, int64_t h, const int64_t* places, int count, const float* z, float* y) {
  Floats sums[N][FEATURES] = {};
  for (int i = 0; i < count; ++i)
    for (int f = 0; f < FEATURES; ++f) {
      const Floats value = opened<kind>(v, places[i], h + f * WIDTH);
      for (int n = 0; n < N; ++n) sums[n][f] += all(z[n * STRETCH + i]) * value;
    }
  for (int n = 0; n < N; ++n)
    for (int f = 0; f < FEATURES; ++f) store(y + n * a.found() + h + f * WIDTH, sums[n][f]);
}

// What N queries q [N, H] find at the places listed.
template <int N>
void look(const Attention& a, const Tokens& t, const float* q, const int64_t* places, int count, float* found) {
  float z[N * STRETCH];
  of_kind(t.k.kind, [&](auto kind) { scores<kind(), N>(a, t, q, places, count, z); });
  weights(a, N, count, z, found);
  of_kind(t.v.kind, [&](auto kind) {
    int64_t h = 0;
    for (; h + 4 * WIDTH <= a.width; h += 4 * WIDTH) weigh<kind(), N, 4>(a, t.v, h, places, count, z, found + 2);
    for (; h < a.width; h += WIDTH) weigh<kind(), N, 1>(a, t.v, h, places, count, z, found + 2);
  });
}

// What the queries of one kv head find in a stretch: [group, found].
inline void look(const Attention& a, const Tokens& t, int64_t row, int64_t head, int64_t from, float* found) {
  int64_t places[STRETCH];
  const int count = listed(a, t, row, head, from, places);
  if (count == 0) {
    std::fill(found, found + a.group * a.found(), 0.0f);
    for (int64_t g = 0; g < a.group; ++g) found[g * a.found()] = HIDDEN;
    return;
  }
  const float* q = a.q + (row * a.heads + head) * a.group * a.size;
  for (int64_t g = 0; g < a.group; g += QUERIES) {
    switch (a.group - g) {
      case 1: look<1>(a, t, q, places, count, found); break;
      case 2: look<2>(a, t, q, places, count, found); break;
      case 3: look<3>(a, t, q, places, count, found); break;
      default: look<QUERIES>(a, t, q, places, count, found);
    }
    q += QUERIES * a.size, found += QUERIES * a.found();
  }
}

// Brings what was found in all stretches [count, group, found] together: values over the sum of all weights, and of the
// sink's.
inline void join(const Attention& a, int64_t row, int64_t head, const float* found, int64_t count) {
  for (int64_t g = 0; g < a.group; ++g) {
    const int64_t query = head * a.group + g, step = a.group * a.found();
    const float* mine = found + g * a.found();
    float top = a.sinks ? a.sinks[query] : HIDDEN;
    for (int64_t i = 0; i < count; ++i) top = std::max(top, mine[i * step]);
    float sum = a.sinks ? std::exp(a.sinks[query] - top) : 0;
    float* y = a.y + (row * a.heads * a.group + query) * a.width;
    std::fill(y, y + a.width, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float* const from = mine + i * step;
      if (from[1] == 0) continue;  // nothing was seen
      const float part = std::exp(from[0] - top);
      sum += part * from[1];
      for (int64_t h = 0; h < a.width; ++h) y[h] += part * from[2 + h];
    }
    for (int64_t h = 0; h < a.width && sum > 0; ++h) y[h] /= sum;  // 0 where nothing is seen
  }
}

inline void attend(const Attention& a) {
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
  const int64_t count = stretches.size(), pairs = a.batch * a.heads, size = a.group * a.found();
  std::unique_ptr<float[]> found(new float[pairs * count * size]);
  auto some = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Stretch& s = stretches[i % count];
      look(a, *s.tokens, i / count / a.heads, i / count % a.heads, s.from, &found[i * size]);
    }
  };
  const bool little = slots * pairs * (a.size + a.width) < LITTLE;
  parallel(pairs * count, little ? 1 : 64 * threads(), some);
  for (int64_t pair = 0; pair < pairs; ++pair)
    join(a, pair / a.heads, pair % a.heads, &found[pair * count * size], count);
}

}  // namespace forge
