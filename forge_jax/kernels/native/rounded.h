// y = w x with x rounded to int8, a scale for every 32 numbers: products of integers, brought together in float32.
//
// What is multiplied is exactly round(x / step) * step with step = max |x| / 127, so the plain path can do the same.
#pragma once

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
};

// OUT outputs of ROWS rows of x.
template <class Format, int OUT, int ROWS>
void rounded_tile(const Operands& p, const Rounded& x, int64_t output, int64_t row) {
  constexpr int codes = Format::codes, step = Format::bytes[codes] * RUN / Format::block;
  const int64_t runs = p.inputs / RUN;
  Row weights[OUT];
#pragma GCC unroll 16
  for (int o = 0; o < OUT; ++o) weights[o] = p.weights(output + o);
  Eight sums[OUT][ROWS] = {};
  for (int64_t run = 0; run < runs; ++run) {
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o) __builtin_prefetch(weights[o].part[codes] + OUT * p.pitch[codes] + run * step);
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o) {
      const Coded w = Format::coded(weights[o], run);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const int64_t at = (row + r) * runs + run;
        const Sums start = Format::ZERO ? x.start[at] : Sums{};
        const Eight made = floats(dot(start, w.codes, &x.numbers[at * RUN])) * eight(x.step[at]);
        sums[o][r] += made * eight(w.scale);
        if (!Format::ZERO) sums[o][r] += eight(x.share[at]) * eight(w.shift);
      }
    }
  }
#pragma GCC unroll 16
  for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) p.y[(row + r) * p.outputs + output + o] = total(sums[o][r]);
}

template <class Format>
void rounded_product(const Operands& p) {
  const Rounded x(p.x, p.rows, p.inputs, Format::ZERO);
  shared<Format>(p, [&]<int OUT>(int64_t output) {
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) rounded_tile<Format, OUT, 4>(p, x, output, row);
    for (; row < p.rows; ++row) rounded_tile<Format, OUT, 1>(p, x, output, row);
  });
}

}  // namespace forge
