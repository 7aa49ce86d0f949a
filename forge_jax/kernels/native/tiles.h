// The formats again, 16 rows at a time: of every part, units of the 16 rows follow each other, four codes of each row or
// one of anything else (forge_jax/quantization/ggml/tiles.py). No lane need ever be added to another one.
//
// The numbers are scale * (code - ZERO) + shift, `PIECES` scales to a run of 32. `coded` gives the codes of numbers
// 4 j to 4 j + 3 of a run. Only formats whose ZERO is 0 have shifts.
#pragma once

#include "superblocks.h"

namespace forge {

template <class Format>
struct Tiled;

// Where 16 rows lie: `part[i]` is where they begin in it.
using Rows = Row;

// The codes of unit `unit` of part `i`.
inline Bytes unit(const Rows& rows, int i, int64_t unit) { return bytes(rows.as<uint8_t>(i, unit * 64)); }

// Codes of 4 bits: the first half of a run in the low halves of bytes, the second in the high ones.
inline Bytes half_bytes(const Rows& rows, int i, int64_t run, int j) {
  const Bytes both = unit(rows, i, run * 4 + j % 4);
  return j < 4 ? low_halves(both) : high_halves(both);
}

// Formats whose part `at` is a scale in float16 for each run.
template <int at>
struct HalfScaled {
  static constexpr int PIECES = 1;

  static Sixteen scale(const Rows& rows, int64_t run) { return sixteen_halves(rows.as<uint16_t>(at, run * TOGETHER)); }
};

template <int at>
struct HalfShifted : HalfScaled<0> {
  static constexpr int ZERO = 0;

  static Sixteen shift(const Rows& rows, int64_t run) { return sixteen_halves(rows.as<uint16_t>(at, run * TOGETHER)); }
};

template <>
struct Tiled<Q8_0> : HalfScaled<0> {
  static constexpr int ZERO = 128;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return unit(rows, 1, run * 8 + j) ^ 128; }
};

template <>
struct Tiled<Q4_0> : HalfScaled<0> {
  static constexpr int ZERO = 8;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return half_bytes(rows, 1, run, j); }
};

template <>
struct Tiled<Q4_1> : HalfShifted<1> {
  static Bytes coded(const Rows& rows, int64_t run, int j) { return half_bytes(rows, 2, run, j); }
};

// The fifth bits of 64 codes, which lie together.
inline Bytes fifth(const Rows& rows, int i, int64_t run, int j) {
  uint64_t bits;
  std::memcpy(&bits, rows.as<uint8_t>(i, (run * 8 + j) * 8), sizeof bits);
  return sixteens(bits);
}

template <>
struct Tiled<Q5_0> : HalfScaled<0> {
  static constexpr int ZERO = 16;

  static Bytes coded(const Rows& rows, int64_t run, int j) {
    return half_bytes(rows, 2, run, j) | fifth(rows, 1, run, j);
  }
};

template <>
struct Tiled<Q5_1> : HalfShifted<1> {
  static Bytes coded(const Rows& rows, int64_t run, int j) {
    return half_bytes(rows, 3, run, j) | fifth(rows, 2, run, j);
  }
};

template <>
struct Tiled<IQ4_NL> : HalfScaled<0> {
  static constexpr int ZERO = 128;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return chosen(IQ4_BYTES, half_bytes(rows, 1, run, j)); }
};

template <>
struct Tiled<MXFP4> {
  static constexpr int ZERO = 128, PIECES = 1;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return chosen(E2M1_BYTES, half_bytes(rows, 1, run, j)); }

  // as `power`, for 16
  static Sixteen scale(const Rows& rows, int64_t run) {
    const Sums e = sixteen_bytes(rows.as<int8_t>(0, run * TOGETHER)) & 255;
    const Sums tiny = (1 << 21) << (e & 1);
    return reinterpret_cast<Sixteen>(e < 2 ? tiny : (e - 1) << 23);
  }
};

// The scale and the minimum of run `sub` of a block of Q4_K and Q5_K, as `Pair` takes them apart, for 16 rows.
struct Pairs {
  Sums scale, minimum;

  Pairs(const Rows& rows, int i, int64_t block, int sub) {
    Sums words[3];
    std::memcpy(words, rows.as<uint8_t>(i, block * 3 * 64), sizeof words);
    const int at = 8 * (sub % 4);
    if (sub < 4) {
      scale = words[0] >> at & 63, minimum = words[1] >> at & 63;
    } else {
      scale = (words[2] >> at & 15) | (words[0] >> (at + 6) & 3) << 4;
      minimum = (words[2] >> (at + 4) & 15) | (words[1] >> (at + 6) & 3) << 4;
    }
  }
};

// Blocks of eight runs with scales and minima in part 2, codes in part `at`, two runs in a byte.
template <int at>
struct PairScaled {
  static constexpr int ZERO = 0, PIECES = 1;

  static Sixteen scale(const Rows& rows, int64_t run) {
    const Pairs pairs(rows, 2, run / EIGHT, run % EIGHT);
    return sixteen(pairs.scale) * sixteen_halves(rows.as<uint16_t>(0, run / EIGHT * TOGETHER));
  }

  static Sixteen shift(const Rows& rows, int64_t run) {
    const Pairs pairs(rows, 2, run / EIGHT, run % EIGHT);
    return -sixteen(pairs.minimum) * sixteen_halves(rows.as<uint16_t>(1, run / EIGHT * TOGETHER));
  }

  static Bytes low(const Rows& rows, int64_t run, int j) {
    const Bytes both = unit(rows, at, run / 2 * 8 + j);
    return run % 2 ? high_halves(both) : low_halves(both);
  }
};

template <>
struct Tiled<Q4_K> : PairScaled<3> {
  static Bytes coded(const Rows& rows, int64_t run, int j) { return low(rows, run, j); }
};

template <>
struct Tiled<Q5_K> : PairScaled<4> {
  static Bytes coded(const Rows& rows, int64_t run, int j) {
    const Bytes high = unit(rows, 3, run / EIGHT * 8 + j);
    return low(rows, run, j) | (high >> static_cast<uint8_t>(run % EIGHT) & 1) << 4;
  }
};

template <>
struct Tiled<Q6_K> {
  static constexpr int ZERO = 32, PIECES = 2;

  static Sixteen scale(const Rows& rows, int64_t piece) {
    const Sums scale = sixteen_bytes(rows.as<int8_t>(2, piece * TOGETHER));
    return sixteen(scale) * sixteen_halves(rows.as<uint16_t>(3, piece / (2 * EIGHT) * TOGETHER));
  }

  static Bytes coded(const Rows& rows, int64_t run, int j) {
    const int64_t block = run / EIGHT, group = run % EIGHT / 4, quarter = run % 4;
    const Bytes both = unit(rows, 0, block * 32 + group * 16 + quarter % 2 * 8 + j);
    const Bytes high = unit(rows, 1, block * 16 + group * 8 + j);
    return (quarter < 2 ? low_halves(both) : high_halves(both)) | (high >> static_cast<uint8_t>(2 * quarter) & 3) << 4;
  }
};

template <>
struct Tiled<IQ4_XS> {
  static constexpr int ZERO = 128, PIECES = 1;

  static Sixteen scale(const Rows& rows, int64_t run) {
    const int64_t block = run / EIGHT;
    const int sub = run % EIGHT;
    typedef uint16_t Shorts __attribute__((vector_size(32)));
    Shorts high;
    Sums low;
    std::memcpy(&high, rows.as<uint16_t>(1, block * TOGETHER), sizeof high);
    std::memcpy(&low, rows.as<uint8_t>(2, block * 64), sizeof low);
    const Sums scale = (low >> (4 * sub) & 15) | (__builtin_convertvector(high, Sums) >> (2 * sub) & 3) << 4;
    return sixteen(scale - 32) * sixteen_halves(rows.as<uint16_t>(0, block * TOGETHER));
  }

  static Bytes coded(const Rows& rows, int64_t run, int j) { return chosen(IQ4_BYTES, half_bytes(rows, 3, run, j)); }
};

}  // namespace forge
