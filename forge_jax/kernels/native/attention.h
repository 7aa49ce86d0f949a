// Softmax attention of one new token a row over the slots that it sees, for grouped heads, in float32.
//
// Slots are looked at in stretches of a fixed length, each with a maximum of its own, whose results are then brought
// together: stretches are shared among threads, and no number depends on how.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"
#include "vectors.h"

namespace forge {

constexpr int STRETCH = 256;  // slots
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

// Tokens to look at: keys and values [B, K, S, *] and what is seen of them [B, S].
struct Tokens {
  const float *k, *v;
  const bool* seen;
  int64_t slots;
};

struct Attention {
  const float *q, *sinks;  // [B, N, H], [N] or none
  float* y;                // [B, N, width]
  std::vector<Tokens> parts;
  int64_t batch, heads, group, size, width;  // kv heads, queries a kv head, features of keys and of values
  float scale, softcap;                      // 0: no cap
};

// What came of a stretch for the queries of one kv head: a maximum, a sum of weights, and weighted values.
struct Found {
  std::vector<float> top, sum, values;
};

// The scores of one query at the slots listed, at least WIDTH of them being writable.
inline void scores(const Attention& a, const float* q, const float* k, const std::vector<int>& slots, float* z) {
  for (size_t i = 0; i < slots.size(); ++i) {
    const float* key = k + slots[i] * a.size;
    Floats sum = load(q) * load(key);
    for (int64_t h = WIDTH; h < a.size; h += WIDTH) sum += load(q + h) * load(key + h);
    const float score = total(sum) * a.scale;
    z[i] = a.softcap == 0 ? score : a.softcap * std::tanh(score / a.softcap);
  }
}

// Adds weight times value for the slots listed: N vectors of features at a time, so that sums stay in registers.
template <int N>
void weigh(const float* weights, const float* v, int64_t width, const std::vector<int>& slots, float* out) {
  Floats sums[N] = {};
  for (size_t i = 0; i < slots.size(); ++i) {
    const Floats weight = all(weights[i]);
    for (int n = 0; n < N; ++n) sums[n] += weight * load(v + slots[i] * width + n * WIDTH);
  }
  for (int n = 0; n < N; ++n) store(out + n * WIDTH, sums[n]);
}

inline void look(const Attention& a, const Tokens& t, int64_t row, int64_t head, int64_t from, Found& found) {
  std::vector<int> slots;
  slots.reserve(STRETCH);
  const int64_t end = std::min<int64_t>(from + STRETCH, t.slots);
  for (int64_t s = from; s < end; ++s)
    if (t.seen[row * t.slots + s]) slots.push_back(static_cast<int>(s));
  found.top.assign(a.group, HIDDEN), found.sum.assign(a.group, 0), found.values.assign(a.group * a.width, 0);
  if (slots.empty()) return;
  const float* k = t.k + (row * a.heads + head) * t.slots * a.size;
  const float* v = t.v + (row * a.heads + head) * t.slots * a.width;
  float z[STRETCH + WIDTH];
  for (int64_t g = 0; g < a.group; ++g) {
    scores(a, a.q + ((row * a.heads + head) * a.group + g) * a.size, k, slots, z);
    const float top = *std::max_element(z, z + slots.size());
    std::fill(z + slots.size(), z + slots.size() + WIDTH, HIDDEN);
    Floats sum{};
    for (size_t i = 0; i < slots.size(); i += WIDTH) {
      const Floats weight = exponential(load(z + i) - all(top));
      sum += weight;
      store(z + i, weight);
    }
    found.top[g] = top, found.sum[g] = total(sum);
    float* out = &found.values[g * a.width];
    int64_t h = 0;
    for (; h + 4 * WIDTH <= a.width; h += 4 * WIDTH) weigh<4>(z, v + h, a.width, slots, out + h);
    for (; h < a.width; h += WIDTH) weigh<1>(z, v + h, a.width, slots, out + h);
  }
}

// Brings what was found in all stretches together: values over the sum of all weights, and of the sink's.
inline void join(const Attention& a, int64_t row, int64_t head, const Found* found, int64_t count) {
  for (int64_t g = 0; g < a.group; ++g) {
    const int64_t query = head * a.group + g;
    float top = a.sinks ? a.sinks[query] : HIDDEN;
    for (int64_t i = 0; i < count; ++i) top = std::max(top, found[i].top[g]);
    float sum = a.sinks ? std::exp(a.sinks[query] - top) : 0;
    float* y = a.y + (row * a.heads * a.group + query) * a.width;
    std::fill(y, y + a.width, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float part = std::exp(found[i].top[g] - top);
      sum += part * found[i].sum[g];
      for (int64_t h = 0; h < a.width; ++h) y[h] += part * found[i].values[g * a.width + h];
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
  for (const Tokens& t : a.parts)
    for (int64_t from = 0; from < t.slots; from += STRETCH) stretches.push_back({&t, from});
  const int64_t count = stretches.size(), pairs = a.batch * a.heads;
  std::vector<Found> found(pairs * count);
  auto some = [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t pair = i / count;
      const Stretch& s = stretches[i % count];
      look(a, *s.tokens, pair / a.heads, pair % a.heads, s.from, found[i]);
    }
  };
  int64_t slots = 0;
  for (const Tokens& t : a.parts) slots += t.slots;
  const bool little = slots * pairs * (a.size + a.width) < LITTLE;
  parallel(pairs * count, little ? 1 : 4 * threads(), some);
  for (int64_t pair = 0; pair < pairs; ++pair) join(a, pair / a.heads, pair % a.heads, &found[pair * count], count);
}

}  // namespace forge
