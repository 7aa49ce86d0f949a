// y = w x with x rounded to int8, a scale for every 32 numbers: products of integers, brought together in float32.
//
// What is multiplied is exactly round(x / step) * step with step = max |x| / 127, so the plain path can do the same.
// In which order a number is added up depends on nothing but the number of inputs.
#pragma once

#include <algorithm>
#include <vector>

#include "product.h"

namespace forge {

constexpr int STRIDE = 16;  // runs whose scales are read at once

// Rows of x, rounded, in the order of `Quad`. `start`: what the products with codes begin with, so that a code of
// `zero` counts as 0. `share`: the sum of 32 numbers times the step, for what is added to every code.
struct Rounded {
  int64_t quads, strides;  // of a row
  std::vector<Quad> numbers;
  std::vector<Sums> start;
  std::vector<Sixteen> step, share;

  Rounded(const float* x, int64_t rows, int64_t inputs, int zero)
      : quads((inputs / RUN + QUAD - 1) / QUAD), strides((quads + QUAD - 1) / QUAD),
        numbers(rows * quads), start(rows * quads), step(rows * strides), share(rows * strides) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t run = 0; run < inputs / RUN; ++run) round(x + row * inputs + run * RUN, row, run);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t quad = 0; quad < quads; ++quad) sum(row, quad, zero);
  }

  // One run. NaN is the largest of all as whole numbers, and makes the step NaN.
  void round(const float* from, int64_t row, int64_t run) {
    Ints most{};
    for (int i = 0; i < RUNS; ++i) {
      const Ints size = reinterpret_cast<Ints>(load(from + i * WIDTH)) & 0x7fffffff;
      most = size > most ? size : most;
    }
    const float top = largest(most), inverse = top != 0 ? 127.0f / top : 0.0f;
    step[row * strides + run / STRIDE][run % STRIDE] = top / 127.0f;
    Quad& quad = numbers[row * quads + run / QUAD];
    for (int half = 0; half < 2; ++half) {
      int8_t* to = reinterpret_cast<int8_t*>(half ? &quad.second : &quad.first) + run % QUAD * 16;
      for (int i = 0; i < 16; i += WIDTH) round(load(from + half * 16 + i) * all(inverse), to + i);
    }
  }

  // Added to 3 * 2^22, a small number is rounded to the nearest whole one, which is then in the lowest bits.
  static void round(Floats x, int8_t* to) {
    const Floats shifted = x + all(12582912.0f);
    const Small whole = __builtin_convertvector(reinterpret_cast<Ints>(shifted), Small);
    std::memcpy(to, &whole, sizeof whole);
  }

  void sum(int64_t row, int64_t quad, int zero) {
    const Bytes one = Bytes{} + 1;
    const Sums fours = dot(Sums{}, Quad{one, one}, numbers[row * quads + quad]);
    start[row * quads + quad] = fours * -zero;
    if (zero) return;
    const int64_t at = row * strides + quad / QUAD;
    for (int i = 0; i < 16; ++i) share[at][quad % QUAD * QUAD + i / 4] += fours[i];
    if (quad % QUAD == QUAD - 1 || quad == quads - 1) share[at] *= step[at];
  }
};

// OUT outputs of ROWS rows of x.
template <class Format, int OUT, int ROWS>
void rounded_tile(const Operands& p, const Rounded& x, int64_t output, int64_t row) {
  constexpr int codes = Format::codes, bytes = Format::bytes[codes];
  const int64_t runs = p.inputs / RUN;
  Row weights[OUT];
  for (int o = 0; o < OUT; ++o) weights[o] = p.weights(output + o);
  Sixteen sums[std::max(ROWS * OUT, 4)] = {}, scale[ROWS][OUT];
  auto quad = [&](int64_t from, int i, int count) __attribute__((always_inline)) {
    const int64_t run = from + i * QUAD;
    Quad w[OUT];
#pragma GCC unroll 4
    for (int o = 0; o < OUT; ++o) {
      for (int j = 0; j < QUAD * bytes; j += 64) ahead(weights[o].part[codes] + run * bytes + j);
      w[o] = Format::coded(weights[o], run, count);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const int64_t at = (row + r) * x.quads + run / QUAD;
      const Bytes first = x.numbers[at].first, second = x.numbers[at].second;
      const Sums start = Format::ZERO ? x.start[at] : Sums{};
#pragma GCC unroll 4
      for (int o = 0; o < OUT; ++o)
        sums[r * OUT + o] += sixteen(dot(dot(start, w[o].first, first), w[o].second, second)) * spread(scale[r][o], i);
    }
  };
  for (int64_t first = 0; first < runs; first += STRIDE) {
    const int count = std::min<int64_t>(STRIDE, runs - first);
#pragma GCC unroll 4
    for (int o = 0; o < OUT; ++o) {
      ahead(weights[o].part[0] + first * Format::bytes[0]);
      const Sixteen d = Format::scales(weights[o], first, count);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) scale[r][o] = d * x.step[(row + r) * x.strides + first / STRIDE];
      if constexpr (Format::ZERO == 0) {
        const Sixteen m = Format::shifts(weights[o], first, count);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) sums[r * OUT + o] += m * x.share[(row + r) * x.strides + first / STRIDE];
      }
    }
    if (count == STRIDE) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) quad(first, i, QUAD);
    } else {
      for (int i = 0; i * QUAD < count; ++i) quad(first, i, std::min(QUAD, count - i * QUAD));
    }
  }
  float made[std::max(ROWS * OUT, 4)];
  for (int i = 0; i < ROWS * OUT; i += 4) totals(sums + i, made + i);
  for (int r = 0; r < ROWS; ++r) std::copy_n(made + r * OUT, OUT, p.y + (row + r) * p.outputs + output);
}

// Four outputs at a time; weights that are in the cache are multiplied by all rows of x.
template <class Format>
void rounded_product(const Operands& p) {
  const Rounded x(p.x, p.rows, p.inputs, Format::ZERO);
  shared<Format>(p, 4, [&](int64_t from, int64_t to) {
    int64_t output = from;
    for (; output + 4 <= to; output += 4) {
      int64_t row = 0;
      for (; row + 4 <= p.rows; row += 4)
        for (int o = 0; o < 4; o += 2) rounded_tile<Format, 2, 4>(p, x, output + o, row);
      for (; row + 2 <= p.rows; row += 2) rounded_tile<Format, 4, 2>(p, x, output, row);
      for (; row < p.rows; ++row) rounded_tile<Format, 4, 1>(p, x, output, row);
    }
    for (; output < to; ++output)
      for (int64_t row = 0; row < p.rows; ++row) rounded_tile<Format, 1, 1>(p, x, output, row);
  });
}

}  // namespace forge
