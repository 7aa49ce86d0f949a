// Keys and values as a cache keeps them (forge_jax/cache/codecs.py), opened WIDTH features at a time.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace forge {

enum class Kind { F32, BF16, F16, I8, I4 };  // of I8 and I4 there are scales

// Tokens of heads [P, K, page, size], in pages that are a row each or that a table names. `scales`: bfloat16, so many
// `groups` of them to a token and head. Two codes of I4 share a byte, those of the first half of the features low.
struct Slab {
  Kind kind;
  const uint8_t* numbers;
  const uint16_t* scales;
  int64_t size, groups;

  // Of a head and token, but for its scales.
  int64_t bytes() const {
    switch (kind) {
      case Kind::F32: return size * 4;
      case Kind::BF16:
      case Kind::F16: return size * 2;
      case Kind::I8: return size;
      default: return size / 2;
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
  if constexpr (kind == Kind::I8)
    return floats(widen(reinterpret_cast<const int8_t*>(s.numbers) + at)) * all(brain(s.scales[place]));
  const int64_t half = s.size / 2;
  const Ints both = widen(s.numbers + place * half + (h < half ? h : h - half));
  const Floats codes = floats(h < half ? both & 15 : both >> 4);
  return (codes - all(7.5f)) * all(brain(s.scales[place * s.groups + h * s.groups / s.size]));
}

// Calls run with the kind as a constant.
template <class Run>
void of_kind(Kind kind, Run run) {
  switch (kind) {
    case Kind::F32: return run(std::integral_constant<Kind, Kind::F32>());
    case Kind::BF16: return run(std::integral_constant<Kind, Kind::BF16>());
    case Kind::F16: return run(std::integral_constant<Kind, Kind::F16>());
    case Kind::I8: return run(std::integral_constant<Kind, Kind::I8>());
    case Kind::I4: return run(std::integral_constant<Kind, Kind::I4>());
  }
}

}  // namespace forge
