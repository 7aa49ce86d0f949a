// y = w x with x rounded to int8, a scale for every 32 numbers: products of integers, brought together in float32.
//
// What is multiplied is exactly round(x / step) * step with step = max |x| / 127, so the plain path can do the same.
// In which order a number is added up depends on nothing but the number of inputs.
#pragma once

#include <algorithm>
#include <memory>

#include "integers.h"
#include "product.h"

namespace forge {

constexpr int EACH = 8;  // rows of x that are multiplied at once, at most
constexpr int64_t NEAR = 1 << 10;  // bytes of codes that several rows of x are multiplied by while memory delivers more
constexpr int64_t SHARED = 1 << 12;  // numbers to round that are worth more than one thread

// Rows of x, rounded: eight at a time, [blocks, runs, EACH, 32], so that what is multiplied by a weight lies together.
// `start` [blocks, runs, pieces, EACH]: what the products with the codes of a piece begin with, so that a code of `zero`
// counts as 0. `share` [blocks, runs, EACH]: the sum of 32 numbers times the step, for what is added to every code.
struct Rounded {
  int64_t inputs, runs, pieces, blocks;
  int zero;
  std::unique_ptr<int8_t[]> numbers;
  std::unique_ptr<int32_t[]> start;
  std::unique_ptr<float[]> step, share;

  Rounded(const float* x, int64_t rows, int64_t inputs, int pieces, int zero)
      : inputs(inputs), runs(inputs / RUN), pieces(pieces), blocks((rows + EACH - 1) / EACH), zero(zero),
        numbers(new int8_t[blocks * EACH * inputs]), start(new int32_t[blocks * EACH * runs * pieces]),
        step(new float[blocks * EACH * runs]), share(new float[blocks * EACH * runs]) {
    auto some = [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row)
        for (int64_t run = 0; run < runs; ++run) round(x + row * inputs + run * RUN, row, run);
    };
    parallel(rows, rows * inputs < SHARED ? 1 : threads(), some);
  }

  int64_t at(int64_t row, int64_t run) const { return (row / EACH * runs + run) * EACH + row % EACH; }

  // One run. NaN is the largest of all as whole numbers, and makes the step NaN.
  void round(const float* from, int64_t row, int64_t run) {
    Ints most{};
    for (int i = 0; i < RUNS; ++i) {
      const Ints size = reinterpret_cast<Ints>(load(from + i * WIDTH)) & 0x7fffffff;
      most = size > most ? size : most;
    }
    const int64_t here = at(row, run);
    const float top = largest(most), inverse = top != 0 ? 127.0f / top : 0.0f;
    int32_t sums[2] = {};
    for (int i = 0; i < RUNS; ++i) {
      // added to 3 * 2^22, a small number is rounded to the nearest whole one, which is then in the lowest bits
      const Floats shifted = load(from + i * WIDTH) * all(inverse) + all(12582912.0f);
      const Ints whole = reinterpret_cast<Ints>(shifted) - 0x4b400000;
      const Small narrow = __builtin_convertvector(whole, Small);
      std::memcpy(&numbers[here * RUN + i * WIDTH], &narrow, sizeof narrow);
      sums[i * pieces / RUNS] += total(whole);
    }
    step[here] = top / 127.0f;
    share[here] = (sums[0] + sums[1]) * (top / 127.0f);
    for (int64_t piece = 0; piece < pieces; ++piece)
      start[((row / EACH * runs + run) * pieces + piece) * EACH + row % EACH] = -zero * sums[piece];
  }
};

// 16 outputs of ROWS rows of x, which are in one block.
template <class Format, int ROWS>
void rounded_tile(const Operands& p, const Rounded& x, int64_t output, int64_t row) {
  using Tile = Tiled<Format>;
  constexpr int PIECES = Tile::PIECES, AT_ONCE = Format::block / RUN;
  constexpr bool EIGHTH = Tile::ZERO == 128 || Format::bytes[Format::codes] == Format::block;
  constexpr int STRIPS = TOGETHER / WIDTH;  // vectors that have a lane for each of the 16
  Rows rows[STRIPS];
  for (int s = 0; s < STRIPS; ++s) rows[s] = {p.weights(output), s * WIDTH};
  const int64_t first = x.at(p.first + row, 0);
  const int8_t* numbers = &x.numbers[first * RUN];
  const float *step = &x.step[first], *share = &x.share[first];
  const int32_t* start = &x.start[first / EACH * PIECES * EACH + first % EACH];
  Floats sums[STRIPS][ROWS] = {};
  constexpr int64_t UNITS = Format::bytes[Format::codes] * RUN / Format::block * TOGETHER;
  auto one = [&](int64_t run) __attribute__((always_inline)) {
    // between two loads of codes there are more instructions than the processor looks ahead
    for (int64_t i = 0; i < UNITS && ROWS >= 4; i += 64)
      __builtin_prefetch(rows[0].part[Format::codes] + run * UNITS + NEAR + i);
#pragma GCC unroll 2
    for (int piece = 0; piece < PIECES; ++piece) {
      Ints whole[STRIPS][ROWS];
#pragma GCC unroll 32
      for (int i = 0; i < STRIPS * ROWS; ++i)
        whole[i / ROWS][i % ROWS] = Tile::ZERO ? all(start[piece * EACH + i % ROWS]) : Ints{};
#pragma GCC unroll 8
      for (int j = piece * 8 / PIECES; j < (piece + 1) * 8 / PIECES; ++j) {
#pragma GCC unroll 4
        for (int s = 0; s < STRIPS; ++s) {
          const Bytes codes = Tile::coded(rows[s], run, j);
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; ++r) whole[s][r] = dot_four<EIGHTH>(whole[s][r], codes, numbers + r * RUN + j * FOUR);
        }
      }
#pragma GCC unroll 4
      for (int s = 0; s < STRIPS; ++s) {
        const Floats d = Tile::scale(rows[s], run * PIECES + piece);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sums[s][r] += floats(whole[s][r]) * (d * all(step[r]));
      }
    }
    if constexpr (Tile::ZERO == 0) {
#pragma GCC unroll 4
      for (int s = 0; s < STRIPS; ++s) {
        const Floats m = Tile::shift(rows[s], run);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sums[s][r] += m * all(share[r]);
      }
    }
    numbers += EACH * RUN, step += EACH, share += EACH, start += EACH * PIECES;
  };
  for (int64_t run = 0; run < x.runs; run += AT_ONCE) {
#pragma GCC unroll 8
    for (int i = 0; i < AT_ONCE; ++i) one(run + i);
  }
  for (int s = 0; s < STRIPS; ++s)
    for (int r = 0; r < ROWS; ++r) store(p.y + (row + r) * p.outputs + output + s * WIDTH, sums[s][r]);
}

constexpr int64_t SOME = 1 << 19;  // bytes of x that stay in the second cache while weights go by

// Products of one x or of parts of it, in their order, that begin at a multiple of their power of two of rows; 16 outputs
// at a time. Weights that are in the first cache are multiplied by many rows of x.
template <class Format>
void rounded_product(std::span<const Operands> tasks) {
  const Operands &start = tasks.front(), &end = tasks.back();
  const Rounded x(start.x - start.first * start.inputs, end.first + end.rows, start.inputs, Tiled<Format>::PIECES,
                  Tiled<Format>::ZERO);
  const int64_t block = std::max<int64_t>(EACH, SOME / x.inputs / EACH * EACH);
  shared<Format>(tasks, TOGETHER, 8 * threads(), [&](const Operands& p, int64_t from, int64_t to) {
    for (int64_t first = 0; first < p.rows; first += block) {
      const int64_t end = std::min(first + block, p.rows);
      for (int64_t output = from; output < to; output += TOGETHER) {
        int64_t row = first;
        // with short vectors there is less to win, and compilers would take minutes
        if constexpr (WIDTH == 16) {
          for (; row + 8 <= end; row += 8) rounded_tile<Format, 8>(p, x, output, row);
          for (; row + 4 <= end; row += 4) rounded_tile<Format, 4>(p, x, output, row);
          for (; row + 2 <= end; row += 2) rounded_tile<Format, 2>(p, x, output, row);
        }
        for (; row < end; ++row) rounded_tile<Format, 1>(p, x, output, row);
      }
    }
  });
}

}  // namespace forge
