// Keys and values as a cache keeps them (forge_jax/cache/codecs.py), opened WIDTH features at a time.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace forge {

enum class Kind { F32, BF16, F16, F8, I8, I4, I2 };  // of those of a byte and less there are scales

// Tokens of heads [P, K, page, size], in pages that are a row each or that a table names. `scales`: bfloat16, so many
// `groups` of them to a token and head, each of 1 << shift features where they are several. Two codes of I4 and four of I2
// share a byte, those of the first half or quarter of the features lowest.
struct Slab {
  Kind kind;
  const uint8_t* numbers;
  const uint16_t* scales;
  int64_t size, groups;
  int shift;

  // Of a head and token, but for its scales.
  int64_t bytes() const {
    switch (kind) {
      case Kind::F32: return size * 4;
      case Kind::BF16:
      case Kind::F16: return size * 2;
      case Kind::I4: return size / 2;
      case Kind::I2: return size / 4;
      default: return size;
    }
  }
};

inline float brain(uint16_t b) {
  const uint32_t wide = static_cast<uint32_t>(b) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Features h to h + WIDTH of the head and token at `place`, the numbers of the plain path: code times scale in float32.
template <Kind kind>
inline Floats opened(const Slab& s, int64_t place, int64_t h) {
  const int64_t at = place * s.size + h;
  if constexpr (kind == Kind::F32) return load(reinterpret_cast<const float*>(s.numbers) + at);
  if constexpr (kind == Kind::BF16) return bits(widen(reinterpret_cast<const uint16_t*>(s.numbers) + at) << 16);
  if constexpr (kind == Kind::F16) return halves(reinterpret_cast<const uint16_t*>(s.numbers) + at);
  if constexpr (kind == Kind::F8) return eighths(s.numbers + at) * all(brain(s.scales[place]));
  if constexpr (kind == Kind::I8)
    return floats(widen(reinterpret_cast<const int8_t*>(s.numbers) + at)) * all(brain(s.scales[place]));
  constexpr int width = kind == Kind::I4 ? 4 : 2, share = 8 / width;
  const int64_t part = s.size / share;
  int which = 0;
  for (int i = 1; i < share; ++i) which += h >= i * part;
  const Ints codes = widen(s.numbers + (place - which) * part + h) >> (width * which) & ((1 << width) - 1);
  return (floats(codes) - all(((1 << width) - 1) / 2.0f)) * all(brain(s.scales[place * s.groups + (h >> s.shift)]));
}

// Calls run with the kind as a constant.
template <class Run>
void of_kind(Kind kind, Run run) {
  switch (kind) {
    case Kind::F32: return run(std::integral_constant<Kind, Kind::F32>());
    case Kind::BF16: return run(std::integral_constant<Kind, Kind::BF16>());
    case Kind::F16: return run(std::integral_constant<Kind, Kind::F16>());
    case Kind::F8: return run(std::integral_constant<Kind, Kind::F8>());
    case Kind::I8: return run(std::integral_constant<Kind, Kind::I8>());
    case Kind::I4: return run(std::integral_constant<Kind, Kind::I4>());
    case Kind::I2: return run(std::integral_constant<Kind, Kind::I2>());
  }
}

}  // namespace forge
