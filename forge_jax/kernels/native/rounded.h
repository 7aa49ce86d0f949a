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

// One output of one row of x. Sums of even and odd runs are apart, so that one need not wait for the other.
template <class Format>
float rounded_sum(const Row& weights, const Rounded& x, int64_t first, int64_t runs) {
  auto part = [&](int64_t run) {
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

template <class Format>
void rounded_product(const Operands& p) {
  const Rounded x(p.x, p.rows, p.inputs, Format::ZERO);
  const int64_t runs = p.inputs / RUN;
  shared<Format>(p, [&](int64_t from, int64_t to) {
    for (int64_t row = 0; row < p.rows; ++row)
      for (int64_t output = from; output < to; ++output)
        p.y[row * p.outputs + output] = rounded_sum<Format>(p.weights(output), x, row * runs, runs);
  });
}

}  // namespace forge
