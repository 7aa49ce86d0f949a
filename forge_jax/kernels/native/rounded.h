// y = w x with x rounded to int8, a scale for every 32 numbers: products of integers, brought together in float32.
//
// What is multiplied is exactly round(x / step) * step with step = max |x| / 127, so the plain path can do the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "product.h"

namespace forge {

// Rows of x, rounded. `start`: what the products with codes begin with, so that a code of `zero` counts as 0.
// `share`: an eighth of the sum of 32 numbers times the step, for what is added to every code.
struct Rounded {
  std::vector<int8_t> numbers;
  std::vector<float> step, share;
  std::vector<Sums> start;
  // the same for pairs of runs in the order of `CodedPair`
  std::vector<int8_t> paired;
  std::vector<Sums> paired_start;

  Rounded(const float* x, int64_t rows, int64_t inputs, int zero)
      : numbers(rows * inputs), step(rows * inputs / RUN), share(step.size()), start(step.size()) {
    for (size_t run = 0; run < step.size(); ++run) {
      const float* from = x + run * RUN;
      int8_t* to = &numbers[run * RUN];
      float most = 0;
      for (int i = 0; i < RUN; ++i) most = std::max(most, std::fabs(from[i]));
      const float inverse = most > 0 ? 127.0f / most : 0.0f;
      for (int i = 0; i < RUN; ++i) to[i] = static_cast<int8_t>(std::nearbyint(from[i] * inverse));
      step[run] = most / 127.0f;
      const Sums fours = dot(Sums{}, Bytes{} + 1, to);
      start[run] = fours * -zero;
      int32_t sum = 0;
      for (int i = 0; i < 8; ++i) sum += fours[i];
      share[run] = step[run] * sum / 8;
    }
  }

  void pair(int zero) {
    paired = numbers, paired_start.resize(start.size() / 2);
    for (size_t pair = 0; pair < paired_start.size(); ++pair) {
      int8_t* to = &paired[pair * 2 * RUN];
      std::swap_ranges(to + RUN / 2, to + RUN, to + RUN);
      paired_start[pair] = dot(dot(Sums{}, Bytes{} + 1, to), Bytes{} + 1, to + RUN) * -zero;
    }
  }
};

template <class Format>
concept Paired = requires(Row row) { Format::coded_pair(row, 0); };

// One output of one row of x. Sums of even and odd runs are apart, so that one need not wait for the other.
template <class Format>
float rounded_sum(const Row& weights, const Rounded& x, int64_t first, int64_t runs) {
  auto part = [&](int64_t run) __attribute__((always_inline)) {
    const Coded w = Format::coded(weights, run);
    const int64_t at = first + run;
    const Sums start = Format::ZERO ? x.start[at] : Sums{};
    const Eight made = floats(dot(start, w.codes, &x.numbers[at * RUN])) * eight(x.step[at]) * eight(w.scale);
    return Format::ZERO ? made : made + eight(x.share[at]) * eight(w.shift);
  };
  Eight even{}, odd{};
  int64_t run = 0;
  for (; run + 2 <= runs; run += 2) even += part(run), odd += part(run + 1);
  if (run < runs) even += part(run);
  return total(even + odd);
}

// The same for formats whose codes can be read two runs at a time, in half the instructions.
template <class Format>
float paired_sum(const Row& weights, const Rounded& x, int64_t first, int64_t runs) {
  auto part = [&](int64_t run) __attribute__((always_inline)) {
    const CodedPair w = Format::coded_pair(weights, run);
    const int64_t at = first + run;
    const Sums start = Format::ZERO ? x.paired_start[at / 2] : Sums{};
    const int8_t* numbers = &x.paired[at * RUN];
    const Eight made = floats(dot(dot(start, w.first, numbers), w.second, numbers + RUN)) * two(&x.step[at]) * w.scale;
    return Format::ZERO ? made : made + two(&x.share[at]) * w.shift * eight(2);
  };
  Eight even{}, odd{};
  int64_t run = 0;
  for (; run + 4 <= runs; run += 4) even += part(run), odd += part(run + 2);
  if (run < runs) even += part(run);
  return total(even + odd);
}

template <class Format>
void rounded_product(const Operands& p) {
  Rounded x(p.x, p.rows, p.inputs, Format::ZERO);
  const int64_t runs = p.inputs / RUN;
  auto every = [&](auto sum) {
    shared<Format>(p, [&](int64_t from, int64_t to) {
      for (int64_t row = 0; row < p.rows; ++row)
        for (int64_t output = from; output < to; ++output)
          p.y[row * p.outputs + output] = sum(p.weights(output), row * runs);
    });
  };
  if constexpr (Paired<Format>)
    if (runs % 2 == 0) {
      x.pair(Format::ZERO);
      return every([&](const Row& w, int64_t first) { return paired_sum<Format>(w, x, first, runs); });
    }
  every([&](const Row& w, int64_t first) { return rounded_sum<Format>(w, x, first, runs); });
}

}  // namespace forge
