// Root-mean-square normalisation of rows.
#pragma once

#include <cmath>

#include "product.h"

namespace forge {

// y = x / sqrt(mean(x^2) + eps) * (offset + scale), for rows of `size` numbers.
inline void normalise(const float* x, const float* scale, float* y, int64_t rows, int64_t size, float eps, float offset) {
  auto some = [&](int64_t from, int64_t to) {
    const int64_t whole = size - size % (2 * WIDTH);
    for (int64_t row = from; row < to; ++row) {
      const float* const here = x + row * size;
      float* const there = y + row * size;
      Floats sums[2] = {};
      for (int64_t i = 0; i < whole; i += 2 * WIDTH)
        for (int j : {0, 1}) {
          const Floats v = load(here + i + j * WIDTH);
          sums[j] += v * v;
        }
      float power = total(sums[0] + sums[1]);
      for (int64_t i = whole; i < size; ++i) power += here[i] * here[i];
      const float by = 1 / std::sqrt(power / size + eps);
      for (int64_t i = 0; i < size; ++i) there[i] = here[i] * by * (offset + scale[i]);
    }
  };
  parallel(rows, worth(rows * size), some);
}

}  // namespace forge
