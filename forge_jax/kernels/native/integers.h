// Integers of 4 and 8 bits with a scale, and maybe a zero, for groups of whole runs: value = scale * (code - zero). They
// are read in tiles only (forge_jax/quantization/tiles.py). A part that has no bytes a block has a float32 a group.
#pragma once

#include "tiles.h"

namespace forge {

// Parts scale, codes [16], the second half of a run in the high halves of bytes; the zero is 8.
struct I4 {
  static constexpr int block = 32, parts = 2, bytes[] = {0, 16}, codes = 1;
};

// Parts scale, zero, codes [16].
struct I4_ZERO {
  static constexpr int block = 32, parts = 3, bytes[] = {0, 0, 16}, codes = 2;
};

// Parts scale, codes [32], signed; the zero is 0.
struct I8 {
  static constexpr int block = 32, parts = 2, bytes[] = {0, 32}, codes = 1;
};

// Parts scale, zero, codes [32], not signed.
struct I8_ZERO {
  static constexpr int block = 32, parts = 3, bytes[] = {0, 0, 32}, codes = 2;
};

// The numbers of 16 rows for the group of a run.
inline Sixteen of_group(const Rows& rows, int i, int64_t run) {
  const uint32_t group = static_cast<uint32_t>(run) / static_cast<uint32_t>(rows.runs);
  Sixteen v;
  std::memcpy(&v, rows.as<float>(i, static_cast<int64_t>(group) * TOGETHER), sizeof v);
  return v;
}

struct GroupScaled {
  static constexpr int PIECES = 1;

  static Sixteen scale(const Rows& rows, int64_t run) { return of_group(rows, 0, run); }
};

struct GroupShifted : GroupScaled {
  static constexpr int ZERO = 0;

  static Sixteen shift(const Rows& rows, int64_t run) { return -of_group(rows, 0, run) * of_group(rows, 1, run); }
};

template <>
struct Tiled<I4> : GroupScaled {
  static constexpr int ZERO = 8;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return half_bytes(rows, 1, run, j); }
};

template <>
struct Tiled<I4_ZERO> : GroupShifted {
  static Bytes coded(const Rows& rows, int64_t run, int j) { return half_bytes(rows, 2, run, j); }
};

template <>
struct Tiled<I8> : GroupScaled {
  static constexpr int ZERO = 128;

  static Bytes coded(const Rows& rows, int64_t run, int j) { return unit(rows, 1, run * 8 + j) ^ 128; }
};

template <>
struct Tiled<I8_ZERO> : GroupShifted {
  static Bytes coded(const Rows& rows, int64_t run, int j) { return unit(rows, 2, run * 8 + j); }
};

}  // namespace forge
