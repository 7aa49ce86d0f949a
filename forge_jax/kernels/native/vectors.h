// Vectors of float32 and int32 numbers as wide as the machine has them. Whatever depends on an instruction set is here.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace forge {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int WIDTH = 16;
#define FORGE_AVX512 1
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
constexpr const char* INSTRUCTIONS = "AVX-512 with VNNI and BF16";
#elif defined(__AVX512VNNI__)
constexpr const char* INSTRUCTIONS = "AVX-512 with VNNI";
#else
constexpr const char* INSTRUCTIONS = "AVX-512";
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
constexpr int WIDTH = 8;
#define FORGE_AVX2 1
constexpr const char* INSTRUCTIONS = "AVX2";
#else
constexpr int WIDTH = 4;
#if defined(__ARM_NEON)
constexpr const char* INSTRUCTIONS = "NEON";
#else
constexpr const char* INSTRUCTIONS = "portable";
#endif
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

inline Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

// Every lane the same number: x - 0 is x, whereas x + 0 would be computed, since 0 + -0 is 0.
inline Floats all(float x) { return x - Floats{}; }
inline Ints all(int32_t x) { return x - Ints{}; }

// 0, 1, 2, ...
inline Ints lanes() {
  Ints v;
  for (int i = 0; i < WIDTH; ++i) v[i] = i;
  return v;
}

inline Floats floats(Ints v) { return __builtin_convertvector(v, Floats); }

// The same bits.
inline Floats bits(Ints v) { return reinterpret_cast<Floats>(v); }

// The sum of all lanes.
inline float total(Floats v) {
#if defined(FORGE_AVX512)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float sum = 0;
  for (int i = 0; i < WIDTH; ++i) sum += v[i];
  return sum;
#endif
}

// WIDTH integers of one or two bytes.
inline Ints widen(const uint8_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Ints v;
  for (int i = 0; i < WIDTH; ++i) v[i] = from[i];
  return v;
#endif
}

inline Ints widen(const int8_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Ints>(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Ints>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Ints v;
  for (int i = 0; i < WIDTH; ++i) v[i] = from[i];
  return v;
#endif
}

inline Ints widen(const uint16_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Ints>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Ints v;
  for (int i = 0; i < WIDTH; ++i) v[i] = from[i];
  return v;
#endif
}

// float16 as float32: its bits moved to their places are the number times 2^-112, but for infinities, which are none.
inline float half(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const uint32_t magnitude = (h & 0x7fffu) << 13, sign = (h & 0x8000u) << 16;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  return sign ? -value : value;
#endif
}

inline Floats halves(const uint16_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Floats v;
  for (int i = 0; i < WIDTH; ++i) v[i] = half(from[i]);
  return v;
#endif
}

// table[code] for codes of 4 bits; bits above those must be zero.
inline Floats chosen(const float* table, Ints codes) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Floats>(
      _mm512_permutexvar_ps(reinterpret_cast<__m512i>(codes), _mm512_loadu_ps(table)));
#elif defined(FORGE_AVX2)
  const __m256i index = reinterpret_cast<__m256i>(codes);
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
  return reinterpret_cast<Floats>(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
#else
  Floats v;
  for (int i = 0; i < WIDTH; ++i) v[i] = table[codes[i]];
  return v;
#endif
}

// 32 codes of a byte, and 8 sums of products of four of them each with signed bytes.
typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef int32_t Sums __attribute__((vector_size(32)));
typedef float Eight __attribute__((vector_size(32)));

inline Bytes load_bytes(const void* from) {
  Bytes v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// 16 bytes as 32 codes of 4 bits, first the low halves and then the high ones.
inline Bytes nibbles(const uint8_t* from) {
#if defined(FORGE_AVX512) || defined(FORGE_AVX2)
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i apart = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
  return reinterpret_cast<Bytes>(_mm256_and_si256(apart, _mm256_set1_epi8(15)));
#else
  Bytes v;
  for (int i = 0; i < 16; ++i) v[i] = from[i] & 15, v[16 + i] = from[i] >> 4;
  return v;
#endif
}

// table[code] for codes of 4 bits; bits above those must be zero.
inline Bytes chosen(const uint8_t* table, Bytes codes) {
#if defined(FORGE_AVX512) || defined(FORGE_AVX2)
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return reinterpret_cast<Bytes>(_mm256_shuffle_epi8(twice, reinterpret_cast<__m256i>(codes)));
#else
  Bytes v;
  for (int i = 0; i < 32; ++i) v[i] = table[codes[i]];
  return v;
#endif
}

// 16 where bit i of a word is set for byte i.
inline Bytes sixteens(uint32_t word) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Bytes>(_mm256_maskz_set1_epi8(word, 16));
#else
  Bytes v;
  for (int i = 0; i < 32; ++i) v[i] = (word >> i & 1) << 4;
  return v;
#endif
}

// sums + codes x numbers.
inline Sums dot(Sums sums, Bytes codes, const int8_t* numbers) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return reinterpret_cast<Sums>(_mm256_dpbusd_epi32(
      reinterpret_cast<__m256i>(sums), reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(load_bytes(numbers))));
#elif defined(FORGE_AVX512) || defined(FORGE_AVX2)
  const __m256i u = reinterpret_cast<__m256i>(codes), s = reinterpret_cast<__m256i>(load_bytes(numbers));
  for (int i = 0; i < 2; ++i) {
    const __m128i from = i ? _mm256_extracti128_si256(u, 1) : _mm256_castsi256_si128(u);
    const __m128i with = i ? _mm256_extracti128_si256(s, 1) : _mm256_castsi256_si128(s);
    sums += reinterpret_cast<Sums>(_mm256_madd_epi16(_mm256_cvtepu8_epi16(from), _mm256_cvtepi8_epi16(with)));
  }
  return sums;
#else
  for (int i = 0; i < 32; ++i) sums[i / 4] += codes[i] * numbers[i];
  return sums;
#endif
}

inline Eight eight(float x) { return x - Eight{}; }

// The first number in four lanes, the second in the other four.
inline Eight two(const float* from) { return Eight{from[0], from[0], from[0], from[0], from[1], from[1], from[1], from[1]}; }

inline Eight two_halves(const uint16_t* from) {
#if defined(FORGE_AVX512) || defined(FORGE_AVX2)
  int32_t both;
  std::memcpy(&both, from, sizeof both);
  const __m256 wide = _mm256_castps128_ps256(_mm_cvtph_ps(_mm_cvtsi32_si128(both)));
  return reinterpret_cast<Eight>(_mm256_permutevar8x32_ps(wide, _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0)));
#else
  const float wide[] = {half(from[0]), half(from[1])};
  return two(wide);
#endif
}

inline float total(Eight v) {
  const float a = (v[0] + v[4]) + (v[2] + v[6]), b = (v[1] + v[5]) + (v[3] + v[7]);
  return a + b;
}

inline Eight floats(Sums v) { return __builtin_convertvector(v, Eight); }

}  // namespace forge
