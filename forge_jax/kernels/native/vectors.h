// Vectors of float32 and int32 numbers as wide as the machine has them. Whatever depends on an instruction set is here.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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
#if defined(__aarch64__)
#define FORGE_NEON 1
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr const char* INSTRUCTIONS = "NEON with products of integers";
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr const char* INSTRUCTIONS = "NEON with dot products";
#else
constexpr const char* INSTRUCTIONS = "NEON";
#endif
#else
constexpr const char* INSTRUCTIONS = "portable";
#endif
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef int8_t Small __attribute__((vector_size(WIDTH)));

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

// e^x for x <= 0; below -87 it is 0. Cephes' polynomial, within 2 units in the last place.
inline Floats exponential(Floats x) {
  const Ints few = x < all(-87.0f);
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Ints n = __builtin_convertvector(x * all(1.44269504f) - all(0.5f), Ints);
  const Floats m = floats(n), r = (x - m * all(0.693359375f)) + m * all(2.12194440e-4f);
  Floats p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + all(c);
  p = p * r * r + r + all(1.0f);
  return bits(reinterpret_cast<Ints>(p * bits((n + 127) << 23)) & ~few);
}

// The hyperbolic tangent of x: near 0 Cephes' polynomial, where a difference to 1 would lose digits.
inline Floats tangent(Floats x) {
  const Ints sign = reinterpret_cast<Ints>(x) & INT32_MIN;
  const Floats size = bits(reinterpret_cast<Ints>(x) ^ sign), part = exponential(size * all(-2.0f)), square = x * x;
  Floats p = all(-5.70498872745e-3f);
  for (float c : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) p = p * square + all(c);
  const Floats large = bits(reinterpret_cast<Ints>((all(1.0f) - part) / (all(1.0f) + part)) | sign);
  return size < all(0.625f) ? p * square * x + x : large;
}

// The sum of all lanes.
inline float total(Floats v) {
#if defined(FORGE_AVX512)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif defined(FORGE_NEON)
  return vaddvq_f32(reinterpret_cast<float32x4_t>(v));
#else
  float sum = 0;
  for (int i = 0; i < WIDTH; ++i) sum += v[i];
  return sum;
#endif
}

// The sums of the lanes of WIDTH vectors, one to a lane. All are added up in the same order.
inline Floats totals(const Floats* v) {
#if defined(FORGE_AVX512)
  // two vectors become one of half the sums each, four times
  __m512 quarter[8], eighth[4], half[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = reinterpret_cast<__m512>(v[2 * i]), b = reinterpret_cast<__m512>(v[2 * i + 1]);
    quarter[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(quarter[2 * i]), b = _mm512_castps_pd(quarter[2 * i + 1]);
    eighth[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  auto lanes = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  for (int i = 0; i < 2; ++i) half[i] = lanes(eighth[2 * i], eighth[2 * i + 1]);
  return reinterpret_cast<Floats>(lanes(half[0], half[1]));
#elif defined(FORGE_NEON)
  auto beside = [](Floats a, Floats b) __attribute__((always_inline)) {
    return reinterpret_cast<Floats>(vpaddq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
  };
  return beside(beside(v[0], v[1]), beside(v[2], v[3]));
#else
  Floats sums;
  for (int i = 0; i < WIDTH; ++i) sums[i] = total(v[i]);
  return sums;
#endif
}

// Lane j of vector i becomes lane i of vector j, of WIDTH vectors.
inline void transpose(Floats* v) {
#if defined(FORGE_AVX512)
  __m512 of_two[16], of_four[16];
  for (int i = 0; i < 16; i += 2) {
    const __m512 a = reinterpret_cast<__m512>(v[i]), b = reinterpret_cast<__m512>(v[i + 1]);
    of_two[i] = _mm512_unpacklo_ps(a, b), of_two[i + 1] = _mm512_unpackhi_ps(a, b);
  }
  for (int i = 0; i < 16; ++i) {  // vector i has the lanes i % 4, i % 4 + 4, ... of the four that i is among
    const __m512d a = _mm512_castps_pd(of_two[i / 4 * 4 + i % 4 / 2]), b = _mm512_castps_pd(of_two[i / 4 * 4 + i % 4 / 2 + 2]);
    of_four[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 even = _mm512_shuffle_f32x4(of_four[i], of_four[i + 4], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(of_four[i], of_four[i + 4], 0xdd);
    const __m512 even_later = _mm512_shuffle_f32x4(of_four[i + 8], of_four[i + 12], 0x88);
    const __m512 odd_later = _mm512_shuffle_f32x4(of_four[i + 8], of_four[i + 12], 0xdd);
    v[i] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(even, even_later, 0x88));
    v[i + 4] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(odd, odd_later, 0x88));
    v[i + 8] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(even, even_later, 0xdd));
    v[i + 12] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(odd, odd_later, 0xdd));
  }
#elif defined(FORGE_NEON)
  float64x2_t even[2], odd[2];
  for (int i = 0; i < 2; ++i) {
    const float32x4_t a = reinterpret_cast<float32x4_t>(v[2 * i]), b = reinterpret_cast<float32x4_t>(v[2 * i + 1]);
    even[i] = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), odd[i] = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
  }
  v[0] = reinterpret_cast<Floats>(vtrn1q_f64(even[0], even[1])), v[1] = reinterpret_cast<Floats>(vtrn1q_f64(odd[0], odd[1]));
  v[2] = reinterpret_cast<Floats>(vtrn2q_f64(even[0], even[1])), v[3] = reinterpret_cast<Floats>(vtrn2q_f64(odd[0], odd[1]));
#else
  for (int i = 0; i < WIDTH; ++i)
    for (int j = 0; j < i; ++j) {
      const float other = v[i][j];
      v[i][j] = v[j][i], v[j][i] = other;
    }
#endif
}

inline int32_t total(Ints v) {
#if defined(FORGE_AVX512)
  return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v));
#elif defined(FORGE_NEON)
  return vaddvq_s32(reinterpret_cast<int32x4_t>(v));
#else
  int32_t sum = 0;
  for (int i = 0; i < WIDTH; ++i) sum += v[i];
  return sum;
#endif
}

// The float whose bits are the largest of all lanes.
inline float largest(Ints v) {
#if defined(FORGE_AVX512)
  const int32_t most = _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(v));
#elif defined(FORGE_NEON)
  const int32_t most = vmaxvq_s32(reinterpret_cast<int32x4_t>(v));
#else
  int32_t most = v[0];
  for (int i = 1; i < WIDTH; ++i) most = v[i] > most ? v[i] : most;
#endif
  float same;
  std::memcpy(&same, &most, sizeof same);
  return same;
}

// WIDTH integers of a shorter kind.
template <class Short>
Ints widened(const Short* from) {
  typedef Short Shorts __attribute__((vector_size(WIDTH * sizeof(Short))));
  Shorts v;
  std::memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, Ints);
}

// WIDTH integers of one or two bytes.
inline Ints widen(const uint8_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return widened(from);
#endif
}

inline Ints widen(const int8_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Ints>(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Ints>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return widened(from);
#endif
}

inline Ints widen(const uint16_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Ints>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  return widened(from);
#endif
}

// 16 bytes as 32 codes of 4 bits, neighbours of which share a byte, the first one in its low half.
inline void neighbours(const uint8_t* from, Ints* codes) {
#if defined(FORGE_AVX512)
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), half = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(both, half), high = _mm_and_si128(_mm_srli_epi16(both, 4), half);
  codes[0] = reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high)));
  codes[1] = reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_unpackhi_epi8(low, high)));
#else
  uint8_t apart[32];
  for (int i = 0; i < 16; ++i) apart[2 * i] = from[i] & 15, apart[2 * i + 1] = from[i] >> 4;
  for (int i = 0; i < 32 / WIDTH; ++i) codes[i] = widen(apart + i * WIDTH);
#endif
}

// float16 as float32. The smallest are whole numbers times 2^-24, by arithmetic, since XLA's threads take subnormal floats
// for 0.
inline float half(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#elif defined(FORGE_NEON)
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
#else
  const uint32_t size = h & 0x7fffu, wide = (size << 13) + ((size < 0x7c00 ? 112u : 224u) << 23);
  float value = static_cast<float>(size) * 0x1p-24f;
  if (size >= 0x400) std::memcpy(&value, &wide, 4);
  return h & 0x8000u ? -value : value;
#endif
}

inline Floats halves(const uint16_t* from) {
#if defined(FORGE_AVX512)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(FORGE_AVX2)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(FORGE_NEON)
  return reinterpret_cast<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
#else
  Floats v;
  for (int i = 0; i < WIDTH; ++i) v[i] = half(from[i]);
  return v;
#endif
}

// E4M3 as float32. The smallest are whole numbers times 2^-9, by arithmetic, since XLA's threads take subnormal floats for
// 0. The code that is no number becomes 480, which a cache has only beside a scale that is none either.
inline Floats eighths(const uint8_t* from) {
  const Ints code = widen(from), size = code & 127;
  const Floats large = bits((size << 20) + (120 << 23)), small = floats(size) * all(0x1p-9f);
  return bits(reinterpret_cast<Ints>(size < 8 ? small : large) | (code & 128) << 24);
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

}  // namespace forge
