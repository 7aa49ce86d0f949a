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

// Rows `lane` to `lane` + WIDTH of 16 that lie together: `part[i]` is where all of them begin in it.
struct Rows : Row {
  int lane;

  // Their share of unit `unit` of part `i`.
  template <class T>
  const T* of(int i, int64_t unit) const {
    return as<T>(i, unit * TOGETHER + lane);
  }
};

// Four codes of each, or four bytes that are a number.
inline Bytes unit(const Rows& rows, int i, int64_t unit) { return bytes(rows.of<int32_t>(i, unit)); }
inline Ints words(const Rows& rows, int i, int64_t at) { return reinterpret_cast<Ints>(unit(rows, i, at)); }

// Codes of 4 bits: the first half of a run in the low halves of bytes, the second in the high ones.
inline Bytes half_bytes(const Rows& rows, int i, int64_t run, int j) {
  const Bytes both = unit(rows, i, run * 4 + j % 4);
  return j < 4 ? low_halves(both) : high_halves(both);
}

// Formats whose part `at` is a scale in float16 for each run.
template <int at>
struct HalfScaled {
  static constexpr int PIECES = 1;

  static Floats scale(const Rows& rows, int64_t run) { return halves(rows.of<uint16_t>(at, run)); }
};

template <int at>
struct HalfShifted : HalfScaled<0> {
  static constexpr int ZERO = 0;

  static Floats shift(const Rows& rows, int64_t run) { return halves(rows.of<uint16_t>(at, run)); }
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

// The fifth bits of codes, of which all of a unit lie together.
inline Bytes fifth(const Rows& rows, int i, int64_t run, int j) {
  return sixteens(rows.as<uint8_t>(i, (run * 8 + j) * 8 + rows.lane / 2));
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
  static Floats scale(const Rows& rows, int64_t run) {
    const Ints e = widen(rows.of<uint8_t>(0, run));
    const Ints tiny = (1 << 21) << (e & 1);
    return reinterpret_cast<Floats>(e < 2 ? tiny : (e - 1) << 23);
  }
};

// The scale and the minimum of run `sub` of a block of Q4_K and Q5_K, as `Pair` takes them apart, for 16 rows.
struct Pairs {
  Ints scale, minimum;

  Pairs(const Rows& rows, int i, int64_t block, int sub) {
    const Ints word[] = {words(rows, i, block * 3), words(rows, i, block * 3 + 1), words(rows, i, block * 3 + 2)};
    const int at = 8 * (sub % 4);
    if (sub < 4) {
      scale = word[0] >> at & 63, minimum = word[1] >> at & 63;
    } else {
      scale = (word[2] >> at & 15) | (word[0] >> (at + 6) & 3) << 4;
      minimum = (word[2] >> (at + 4) & 15) | (word[1] >> (at + 6) & 3) << 4;
    }
  }
};

// Blocks of eight runs with scales and minima in part 2, codes in part `at`, two runs in a byte.
template <int at>
struct PairScaled {
  static constexpr int ZERO = 0, PIECES = 1;

  static Floats scale(const Rows& rows, int64_t run) {
    const Pairs pairs(rows, 2, run / EIGHT, run % EIGHT);
    return floats(pairs.scale) * halves(rows.of<uint16_t>(0, run / EIGHT));
  }

  static Floats shift(const Rows& rows, int64_t run) {
    const Pairs pairs(rows, 2, run / EIGHT, run % EIGHT);
    return -floats(pairs.minimum) * halves(rows.of<uint16_t>(1, run / EIGHT));
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

  static Floats scale(const Rows& rows, int64_t piece) {
    const Ints scale = widen(rows.of<int8_t>(2, piece));
    return floats(scale) * halves(rows.of<uint16_t>(3, piece / (2 * EIGHT)));
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

  static Floats scale(const Rows& rows, int64_t run) {
    const int64_t block = run / EIGHT;
    const int sub = run % EIGHT;
    const Ints high = widen(rows.of<uint16_t>(1, block)), low = words(rows, 2, block);
    const Ints scale = (low >> (4 * sub) & 15) | (high >> (2 * sub) & 3) << 4;
    return floats(scale - 32) * halves(rows.of<uint16_t>(0, block));
  }

  static Bytes coded(const Rows& rows, int64_t run, int j) { return chosen(IQ4_BYTES, half_bytes(rows, 3, run, j)); }
};

}  // namespace forge
