// What PyTorch has no fast kernel for on a CPU with bfloat16 instructions: attention inside packed documents, the softmax
// of the loss, dropout, transposing. Compiled at first use and called through `cpu_kernels.py`, which says what the arguments are.
//
// Matrix products are oneDNN's, as PyTorch exports them (`brgemm`: C[M, N] float32 = A[M, K] B[K, N] in bfloat16). Its
// B comes in pairs of rows: [K / 2, N, 2]. Where a block is cut off by the end of a document, its rows are filled up
// with zeros to a multiple of 32, so that few shapes occur: oneDNN generates code for each.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

using at::BFloat16;
using at::native::cpublas::brgemm;
using Floats = __m512;  // 16 of them

constexpr int64_t kLanes = 16;
// How many queries have their scores in memory at a time, and how many keys: fewer cost more in calls of brgemm.
constexpr int64_t kQueries = 128, kForwardKeys = 256, kKeys = 128;
constexpr int64_t kPadding = 32;
constexpr float kHidden = -1e30f;  // a score whose weight is zero, and that can still be subtracted from itself

int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// Bfloat16 to and from float32, 16 at a time, or the first `n` of 16.
Floats widened(const BFloat16* from) {
  auto bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

__m256i rounded(Floats x) { return (__m256i)_mm512_cvtneps_pbh(x); }

void store(BFloat16* to, Floats x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(x)); }

__mmask16 first(int64_t n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1 << std::max<int64_t>(n, 0)) - 1); }

Floats widened(const BFloat16* from, int64_t n) {
  auto bits = _mm256_maskz_loadu_epi16(first(n), from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

void store(BFloat16* to, Floats x, int64_t n) { _mm256_mask_storeu_epi16(to, first(n), rounded(x)); }

// 2^x to 2.4e-7 of its value: the nearest integer's power by its exponent, that of the rest, in [-0.5, 0.5], by the
// polynomial of degree 5 whose largest relative error is least (7.5e-8 before rounding).
Floats exp2(Floats x) {
  const auto whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const auto rest = _mm512_sub_ps(x, whole);
  auto y = _mm512_set1_ps(1.32764713e-3f);
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.67554096e-3f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.55071309e-2f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.240221202f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.693146944f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.00000012f));
  return _mm512_scalef_ps(y, whole);
}

// What dropout drops: the same bits as `layers/dropout.py` computes, where they are defined.
struct Drops {
  uint32_t threshold;  // a place with 16 bits below this is dropped; 0: nothing is
  float scale;         // of what is kept

  // The words of 16 pairs of places, or of 16 keys: the first place of a pair has the lower half.
  static __m512i words(__m512i pairs, __m512i low, __m512i high) {
    auto x = _mm512_xor_si512(_mm512_mullo_epi32(pairs, _mm512_set1_epi32(0x9E3779B9)), low);
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(0x7FEB352D));
    x = _mm512_xor_si512(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), high);
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x846CA68B));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
  }

  // Which of 32 places are kept, from an even one on.
  __mmask32 kept(int64_t key, int64_t place) const {
    const auto numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const auto pairs = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(place / 2)), numbers);
    const auto low = _mm512_set1_epi32(static_cast<int32_t>(key));
    const auto high = _mm512_set1_epi32(static_cast<int32_t>(key >> 32));
    return _mm512_cmpge_epu16_mask(words(pairs, low, high), _mm512_set1_epi16(static_cast<int16_t>(threshold)));
  }

  // Of 16 keys, by their halves: whether an even place is kept, and the place after it.
  void kept_pair(const int32_t* lows, const int32_t* highs, int64_t place, __mmask16 (&kept)[2]) const {
    const auto x = words(
        _mm512_set1_epi32(static_cast<int32_t>(place / 2)), _mm512_loadu_si512(lows), _mm512_loadu_si512(highs));
    const auto bound = _mm512_set1_epi32(static_cast<int32_t>(threshold));
    kept[0] = _mm512_cmpge_epu32_mask(_mm512_and_si512(x, _mm512_set1_epi32(0xffff)), bound);
    kept[1] = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 16), bound);
  }
};

// 16 x 16 numbers of 32 bits.
using Square = __m512i[kLanes];

void transpose_square(Square& x) {
  Square y;
  for (int i = 0; i < kLanes; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int half = 0; half < 2; ++half) {
      x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + 2 + half]);
      x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + 2 + half]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const auto low = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88), low_odd = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
    const auto high = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88);
    const auto high_odd = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
    y[i] = _mm512_shuffle_i32x4(low, high, 0x88);
    y[4 + i] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    y[8 + i] = _mm512_shuffle_i32x4(low, high, 0xdd);
    y[12 + i] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
  std::copy_n(y, kLanes, x);
}

// One head's rows of one document, of queries, keys or values laid out as [N, heads, D].
struct Rows {
  const BFloat16* start;
  int64_t stride;
  int64_t count;
  int64_t width;

  const BFloat16* at(int64_t row) const { return start + row * stride; }

  // Rows [begin, begin + n) as A, padded with zeros.
  void copy(int64_t begin, int64_t n, BFloat16* to) const {
    for (int64_t row = 0; row < n; ++row, to += width) {
      if (begin + row < count) {
        std::memcpy(to, at(begin + row), width * sizeof(BFloat16));
      } else {
        std::memset(to, 0, width * sizeof(BFloat16));
      }
    }
  }

  // Rows [begin, begin + n) as B, summed over the rows: [n / 2, D, 2].
  void pair(int64_t begin, int64_t n, BFloat16* to) const {
    const auto zeros = _mm256_setzero_si256();
    for (int64_t row = 0; row < n; row += 2) {
      for (int64_t d = 0; d < width; d += kLanes, to += 2 * kLanes) {
        auto load = [&](int64_t r) {
          return r < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(r) + d)) : zeros;
        };
        const auto low = _mm512_cvtepu16_epi32(load(begin + row)), high = _mm512_cvtepu16_epi32(load(begin + row + 1));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }

  // Rows [begin, begin + n) as B, summed over the width: [D / 2, n, 2].
  void pair_transposed(int64_t begin, int64_t n, BFloat16* to) const {
    in_squares(begin, n, [&](int64_t row, int64_t pair, const Square& square) {
      for (int64_t i = 0; i < kLanes; ++i) _mm512_storeu_si512(to + ((pair + i) * n + row) * 2, square[i]);
    });
  }

  // Rows [begin, begin + n) as A, transposed: [D, n].
  void transpose(int64_t begin, int64_t n, BFloat16* to) const {
    in_squares(begin, n, [&](int64_t row, int64_t pair, const Square& square) {
      for (int64_t i = 0; i < kLanes; ++i) {
        auto* even = reinterpret_cast<__m256i*>(to + 2 * (pair + i) * n + row);
        auto* odd = reinterpret_cast<__m256i*>(to + (2 * (pair + i) + 1) * n + row);
        _mm256_storeu_si256(even, _mm512_cvtepi32_epi16(square[i]));
        _mm256_storeu_si256(odd, _mm512_cvtepi32_epi16(_mm512_srli_epi32(square[i], 16)));
      }
    });
  }

  // Calls `put(row, pair, square)`, where square[i] has pair + i, of the width, of 16 rows.
  template <typename Put>
  void in_squares(int64_t begin, int64_t n, const Put& put) const {
    for (int64_t row = 0; row < n; row += kLanes) {
      for (int64_t pair = 0; pair < width / 2; pair += kLanes) {
        Square square;
        for (int64_t i = 0; i < kLanes; ++i) {
          const bool exists = begin + row + i < count;
          square[i] = exists ? _mm512_loadu_si512(at(begin + row + i) + 2 * pair) : _mm512_setzero_si512();
        }
        transpose_square(square);
        put(row, pair, square);
      }
    }
  }
};

}  // namespace

// A call of attention: tokens [N], of documents that begin at `boundaries` [documents + 1].
struct Attention {
  int64_t documents, heads, key_heads, width;
  const int64_t* boundaries;
  float scale;
  int64_t window;  // a token sees those less than this many places before it, itself included
  int64_t ahead;   // and those up to this many places after it
  const int64_t* drop_keys;  // [N, heads], of the queries, where weights are dropped
  Drops drops;

  int64_t group() const { return heads / key_heads; }
  const int64_t* drop_keys_of(int64_t first_token) const { return drop_keys ? drop_keys + first_token : nullptr; }
  int64_t length(int64_t document) const { return boundaries[document + 1] - boundaries[document]; }

  Rows rows(const BFloat16* x, int64_t document, int64_t head, int64_t of_heads) const {
    return {x + (boundaries[document] * of_heads + head) * width, of_heads * width, length(document), width};
  }

  // Calls `work(document, key head, memory of this thread)` for all, in any order, each by one thread.
  template <typename Memory, typename Work>
  void spread(const Work& work) const {
    std::atomic<int64_t> next{0};
    const int64_t tasks = documents * key_heads;
    at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
      Memory memory;
      for (int64_t task; (task = next++) < tasks;) work(task / key_heads, task % key_heads, memory);
      at::native::cpublas::brgemm_release();
    });
  }

  // Where the keys end that the queries before this one see, of a document of this length.
  int64_t end_of_keys(int64_t query, int64_t length) const { return std::min(query + ahead, length); }

  // Where the block of keys begins in which this query sees its first.
  int64_t first_key(int64_t query, int64_t block) const {
    return std::max<int64_t>(0, query - window + 1) / block * block;
  }
};

namespace {

template <typename T>
T* at_least(std::vector<T>& memory, int64_t size) {
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// Hides all of n scores but those of [begin, end), and says how many of them, in whole vectors, reach up to the end.
int64_t hide(float* scores, int64_t n, int64_t begin, int64_t end) {
  begin = std::clamp<int64_t>(begin, 0, n), end = std::clamp<int64_t>(end, begin, n);
  std::fill(scores, scores + begin, kHidden);
  std::fill(scores + end, scores + n, kHidden);
  return (end + kLanes - 1) / kLanes * kLanes;
}

// Runs `work` and says whether there was memory for it: nothing may be thrown at the caller, which is Python.
template <typename Work>
bool had_memory(const Work& work) {
  try {
    work();
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

struct ForwardMemory {
  std::vector<BFloat16> keys, values, queries, weights;
  std::vector<float> scores, sums;
};

// The softmax of a block of queries that see one block of keys after the other.
struct OnlineSoftmax {
  float scale;             // of the scores, which are exponents of two then
  float largest[kQueries]; // score so far
  float total[kQueries];   // of the weights so far, each 2^(scale * (score - largest))

  explicit OnlineSoftmax(float scale) : scale(scale) {
    std::fill_n(largest, kQueries, kHidden);
    std::fill_n(total, kQueries, 0.0f);
  }

  // The weights of a row's next scores, of which those from `seen` on are hidden, before any are dropped. Returns the factor by which what was
  // summed with the weights before shrinks.
  float weigh(int64_t row, const float* scores, int64_t seen, int64_t columns, BFloat16* weights) {
    auto maximum = _mm512_set1_ps(largest[row]);
    for (int64_t column = 0; column < seen; column += kLanes) {
      maximum = _mm512_max_ps(maximum, _mm512_loadu_ps(scores + column));
    }
    const float shift = _mm512_reduce_max_ps(maximum);
    if (shift == kHidden) {  // nothing seen so far
      std::memset(weights, 0, columns * sizeof(BFloat16));
      return 1;
    }
    auto sum = _mm512_setzero_ps();
    const auto factor = _mm512_set1_ps(scale), subtracted = _mm512_set1_ps(-shift * scale);
    for (int64_t column = 0; column < seen; column += kLanes) {
      const auto x = exp2(_mm512_fmadd_ps(_mm512_loadu_ps(scores + column), factor, subtracted));
      sum = _mm512_add_ps(sum, x);
      store(weights + column, x);
    }
    for (int64_t column = seen; column < columns; column += kLanes) store(weights + column, _mm512_setzero_ps());
    const float shrunk = std::exp2((largest[row] - shift) * scale);
    total[row] = total[row] * shrunk + _mm512_reduce_add_ps(sum);
    largest[row] = shift;
    return shrunk;
  }

  float normaliser(int64_t row) const { return largest[row] * scale + std::log2(total[row]); }
};

void multiply(float* row, int64_t width, float by) {
  for (int64_t d = 0; d < width; d += kLanes) {
    _mm512_storeu_ps(row + d, _mm512_mul_ps(_mm512_loadu_ps(row + d), _mm512_set1_ps(by)));
  }
}

// Rounds n rows of `from` [n, width], times a factor, to where rows like these begin.
void write(const float* from, int64_t n, float factor, const Rows& like, BFloat16* to) {
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t d = 0; d < like.width; d += kLanes) {
      const auto x = _mm512_loadu_ps(from + row * like.width + d);
      store(to + row * like.stride + d, _mm512_mul_ps(x, _mm512_set1_ps(factor)));
    }
  }
}

// Sets the weights of a query to zero that are dropped among those for the keys [begin, begin + n), n a multiple of 32.
void drop(const Drops& drops, int64_t drop_key, int64_t begin, int64_t n, BFloat16* weights) {
  for (int64_t at = 0; at < n; at += 2 * kLanes) {
    const auto x = _mm512_loadu_si512(weights + at);
    _mm512_storeu_si512(weights + at, _mm512_maskz_mov_epi16(drops.kept(drop_key, begin + at), x));
  }
}

// One block of queries of one head, over blocks of keys (Dao et al., 2022, algorithm 1, with the division at the end).
void attend(
    const Attention& call, const Rows& queries, int64_t query, const BFloat16* keys, const BFloat16* values,
    const int64_t* drop_keys, ForwardMemory& memory, BFloat16* output, float* normaliser) {
  const int64_t width = queries.width, n = std::min(kQueries, queries.count - query), rows = padded(n);
  auto* block = at_least(memory.queries, kQueries * width);
  auto* scores = at_least(memory.scores, kQueries * kForwardKeys);
  auto* weights = at_least(memory.weights, kQueries * kForwardKeys);
  auto* sums = at_least(memory.sums, kQueries * width);
  queries.copy(query, rows, block);
  OnlineSoftmax softmax(call.scale * static_cast<float>(M_LOG2E));
  const int64_t begin = call.first_key(query, kForwardKeys);
  const int64_t end = call.end_of_keys(query + n, queries.count);
  for (int64_t key = begin; key < end; key += kForwardKeys) {
    const int64_t columns = std::min(kForwardKeys, padded(end - key));
    brgemm(rows, columns, width, width, kForwardKeys, kForwardKeys, false, block, keys + key * width, scores);
    for (int64_t row = 0; row < n; ++row) {
      auto* of_row = scores + row * kForwardKeys;
      const int64_t behind = call.end_of_keys(query + row + 1, queries.count);
      const int64_t seen = hide(of_row, columns, query + row - call.window + 1 - key, behind - key);
      const float shrunk = softmax.weigh(row, of_row, seen, columns, weights + row * kForwardKeys);
      if (shrunk != 1 && key != begin) multiply(sums + row * width, width, shrunk);
      if (drop_keys) drop(call.drops, drop_keys[(query + row) * call.heads], key, columns, weights + row * kForwardKeys);
    }
    std::memset(weights + n * kForwardKeys, 0, (rows - n) * kForwardKeys * sizeof(BFloat16));
    brgemm(rows, width, columns, kForwardKeys, width, width, key != begin, weights, values + key * width, sums);
  }
  for (int64_t row = 0; row < n; ++row) {
    const float factor = (drop_keys ? call.drops.scale : 1) / softmax.total[row];
    write(sums + row * width, 1, factor, queries, output + (query + row) * queries.stride);
    normaliser[(query + row) * call.heads] = softmax.normaliser(row);
  }
}

struct BackwardMemory {
  std::vector<BFloat16> keys, keys_transposed, values, queries, queries_transposed, grads, grads_transposed;
  std::vector<BFloat16> weights, slopes, slopes_in_pairs;
  std::vector<float> scores, grad_weights, grad_queries, grad_keys, grad_values, deltas, normalisers;
  std::vector<int32_t> low_drop_keys, high_drop_keys;  // of the queries, empty where nothing is dropped
};

// The weights of a block, transposed [keys, queries], without those that are dropped, and the gradients of its scores, as
// A and as B. Padding needs no care among queries, whose gradients are zero there; among keys, those from `length` on,
// nothing sees it.
template <bool drops>
void differentiate_scores(
    const Attention& call, int64_t key, int64_t query, int64_t keys, int64_t queries, int64_t length,
    const float* normalisers, const float* deltas, BackwardMemory& memory) {
  auto* scores = memory.scores.data();
  const auto* grad_weights = memory.grad_weights.data();
  auto *weights = memory.weights.data(), *slopes = memory.slopes.data();
  auto* pairs = reinterpret_cast<uint32_t*>(memory.slopes_in_pairs.data());
  const auto scale = _mm512_set1_ps(call.scale * static_cast<float>(M_LOG2E));
  const auto drop_scale = _mm512_set1_ps(call.drops.scale);
  for (int64_t row = 0; row < keys; row += 2) {
    for (int64_t r = row; r < row + 2; ++r) {
      const int64_t same = key + r - query;
      hide(scores + r * kQueries, queries, same - call.ahead, key + r < length ? same + call.window : 0);
    }
    for (int64_t column = 0; column < queries; column += kLanes) {
      const auto normaliser = _mm512_loadu_ps(normalisers + column), delta = _mm512_loadu_ps(deltas + column);
      __m512i slope_bits[2];
      __mmask16 kept[2];
      if constexpr (drops) {
        const auto *lows = memory.low_drop_keys.data() + query, *highs = memory.high_drop_keys.data() + query;
        call.drops.kept_pair(lows + column, highs + column, key + row, kept);
      }
      for (int64_t r = row; r < row + 2; ++r) {
        const int64_t at = r * kQueries + column;
        auto weight = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), scale, normaliser));
        auto grad = _mm512_loadu_ps(grad_weights + at);
        if constexpr (drops) grad = _mm512_maskz_mul_ps(kept[r - row], grad, drop_scale);
        const auto bits = rounded(_mm512_mul_ps(weight, _mm512_sub_ps(grad, delta)));
        if constexpr (drops) weight = _mm512_maskz_mov_ps(kept[r - row], weight);
        store(weights + at, weight);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(slopes + at), bits);
        slope_bits[r - row] = _mm512_cvtepu16_epi32(bits);
      }
      const auto pair = _mm512_or_si512(slope_bits[0], _mm512_slli_epi32(slope_bits[1], 16));
      _mm512_storeu_si512(pairs + row / 2 * kQueries + column, pair);
    }
  }
}

// What the gradients of a head's scores take of each query, all [rows]: its softmax's normaliser, the product of its
// output and the output's gradient, and the halves of its key of dropout. Zero behind the last query.
void prepare_queries(
    const Attention& call, const Rows& grads, const BFloat16* output, const float* normaliser, const int64_t* drop_keys,
    BackwardMemory& memory) {
  const int64_t length = grads.count, rows = padded(length);
  auto* deltas = at_least(memory.deltas, rows);
  auto* normalisers = at_least(memory.normalisers, rows);
  std::fill(deltas + length, deltas + rows, 0.0f);
  std::fill(normalisers + length, normalisers + rows, 0.0f);
  for (int64_t token = 0; token < length; ++token) {
    auto delta = _mm512_setzero_ps();
    for (int64_t d = 0; d < grads.width; d += kLanes) {
      delta = _mm512_fmadd_ps(widened(grads.at(token) + d), widened(output + token * grads.stride + d), delta);
    }
    deltas[token] = _mm512_reduce_add_ps(delta);
    normalisers[token] = normaliser[token * call.heads];
  }
  if (drop_keys == nullptr) return;
  auto *lows = at_least(memory.low_drop_keys, rows), *highs = at_least(memory.high_drop_keys, rows);
  for (int64_t token = 0; token < length; ++token) {
    lows[token] = static_cast<int32_t>(drop_keys[token * call.heads]);
    highs[token] = static_cast<int32_t>(drop_keys[token * call.heads] >> 32);
  }
}

// Rounds n columns of `from` [width, kQueries], times a factor, to rows like these.
void write_transposed(const float* from, int64_t n, float factor, const Rows& like, BFloat16* to) {
  for (int64_t d = 0; d < like.width; d += kLanes) {
    for (int64_t row = 0; row < n; row += kLanes) {
      Square square;
      for (int64_t i = 0; i < kLanes; ++i) square[i] = _mm512_loadu_si512(from + (d + i) * kQueries + row);
      transpose_square(square);
      for (int64_t i = 0; i < std::min(kLanes, n - row); ++i) {
        const auto x = _mm512_mul_ps(_mm512_castsi512_ps(square[i]), _mm512_set1_ps(factor));
        store(to + (row + i) * like.stride + d, x);
      }
    }
  }
}

// Of one query head; adds to the gradients of its keys and values.
void differentiate_head(
    const Attention& call, const Rows& queries, const Rows& grads, const BFloat16* output, const float* normaliser,
    const int64_t* drop_keys, BackwardMemory& memory, BFloat16* grad_queries) {
  const int64_t width = queries.width, length = queries.count, rows = padded(length);
  prepare_queries(call, grads, output, normaliser, drop_keys, memory);
  auto* q = at_least(memory.queries, kQueries * width);
  auto* qt = at_least(memory.queries_transposed, kQueries * width);
  auto* g = at_least(memory.grads, kQueries * width);
  auto* gt = at_least(memory.grads_transposed, kQueries * width);
  auto* sums = at_least(memory.grad_queries, kQueries * width);
  const auto differentiate = call.drop_keys ? differentiate_scores<true> : differentiate_scores<false>;
  for (int64_t query = 0; query < length; query += kQueries) {
    const int64_t n = std::min(kQueries, rows - query);
    queries.pair(query, n, q), queries.pair_transposed(query, n, qt);
    grads.pair(query, n, g), grads.pair_transposed(query, n, gt);
    const auto *normalisers = memory.normalisers.data() + query, *deltas = memory.deltas.data() + query;
    const int64_t begin = call.first_key(query, kKeys);
    const int64_t end = call.end_of_keys(query + n, rows);
    for (int64_t key = begin; key < end; key += kKeys) {
      const int64_t keys = std::min(kKeys, rows - key);
      const auto at = key * width;
      brgemm(keys, n, width, width, n, kQueries, false, memory.keys.data() + at, qt, memory.scores.data());
      brgemm(keys, n, width, width, n, kQueries, false, memory.values.data() + at, gt, memory.grad_weights.data());
      differentiate(call, key, query, keys, n, length, normalisers, deltas, memory);
      brgemm(keys, width, n, kQueries, width, width, true, memory.weights.data(), g, memory.grad_values.data() + at);
      brgemm(keys, width, n, kQueries, width, width, true, memory.slopes.data(), q, memory.grad_keys.data() + at);
      brgemm(
          width, n, keys, keys, kQueries, kQueries, key != begin, memory.keys_transposed.data() + at,
          memory.slopes_in_pairs.data(), sums);
    }
    write_transposed(sums, std::min(n, length - query), call.scale, queries, grad_queries + query * queries.stride);
  }
}

}  // namespace

extern "C" {

// query [N, heads, D], key and value [N, key heads, D] -> output [N, heads, D], normaliser [N, heads]: the binary
// logarithm of each softmax's sum of exp(scale * score). False: there was no memory.
bool attention_forward(
    const Attention* call, const BFloat16* query, const BFloat16* key, const BFloat16* value, BFloat16* output,
    float* normaliser) {
  const auto work = [&](int64_t document, int64_t key_head, ForwardMemory& memory) {
    const auto keys = call->rows(key, document, key_head, call->key_heads);
    const auto values = call->rows(value, document, key_head, call->key_heads);
    const int64_t length = keys.count, rows = (length + kForwardKeys - 1) / kForwardKeys * kForwardKeys;
    auto* k = at_least(memory.keys, rows * keys.width);
    auto* v = at_least(memory.values, rows * keys.width);
    for (int64_t at = 0; at < length; at += kForwardKeys) keys.pair_transposed(at, kForwardKeys, k + at * keys.width);
    values.pair(0, rows, v);
    for (int64_t head = key_head * call->group(); head < (key_head + 1) * call->group(); ++head) {
      const auto queries = call->rows(query, document, head, call->heads);
      const int64_t first_token = call->boundaries[document] * call->heads + head;
      for (int64_t at = 0; at < length; at += kQueries) {
        attend(
            *call, queries, at, k, v, call->drop_keys_of(first_token), memory, output + first_token * call->width,
            normaliser + first_token);
      }
    }
  };
  return had_memory([&] { call->spread<ForwardMemory>(work); });
}

// The gradients of query, key and value (Dao et al., 2022, algorithm 4, with scores transposed). False: there was no
// memory.
bool attention_backward(
    const Attention* call, const BFloat16* grad, const BFloat16* query, const BFloat16* key, const BFloat16* value,
    const BFloat16* output, const float* normaliser, BFloat16* grad_query, BFloat16* grad_key, BFloat16* grad_value) {
  const auto work = [&](int64_t document, int64_t key_head, BackwardMemory& memory) {
    const auto keys = call->rows(key, document, key_head, call->key_heads);
    const auto values = call->rows(value, document, key_head, call->key_heads);
    const int64_t width = keys.width, rows = padded(keys.count);
    auto* k = at_least(memory.keys, rows * width);
    auto* kt = at_least(memory.keys_transposed, rows * width);
    keys.copy(0, rows, k);
    for (int64_t at = 0; at < rows; at += kKeys) {
      keys.transpose(at, std::min(kKeys, rows - at), kt + at * width);
    }
    values.copy(0, rows, at_least(memory.values, rows * width));
    for (auto* x : {&memory.grad_keys, &memory.grad_values}) {
      std::fill_n(at_least(*x, rows * width), rows * width, 0.0f);
    }
    for (auto* x : {&memory.scores, &memory.grad_weights}) at_least(*x, kQueries * kKeys);
    for (auto* x : {&memory.weights, &memory.slopes, &memory.slopes_in_pairs}) at_least(*x, kQueries * kKeys);
    for (int64_t head = key_head * call->group(); head < (key_head + 1) * call->group(); ++head) {
      const int64_t first_token = call->boundaries[document] * call->heads + head;
      differentiate_head(
          *call, call->rows(query, document, head, call->heads), call->rows(grad, document, head, call->heads),
          output + first_token * width, normaliser + first_token, call->drop_keys_of(first_token), memory,
          grad_query + first_token * width);
    }
    const int64_t first_key = (call->boundaries[document] * call->key_heads + key_head) * width;
    write(memory.grad_keys.data(), keys.count, call->scale, keys, grad_key + first_key);
    const float kept_scale = call->drop_keys ? call->drops.scale : 1;
    write(memory.grad_values.data(), values.count, kept_scale, values, grad_value + first_key);
  };
  return had_memory([&] { call->spread<BackwardMemory>(work); });
}

// x [tokens, channels] of bfloat16 or float32 -> to: channels dropped or scaled, by a key [tokens] for each token.
void drop_channels(
    const void* x, const int64_t* keys, int64_t tokens, int64_t channels, uint32_t threshold, float scale, bool is_bf16,
    void* to) {
  const Drops drops{threshold, scale};
  const auto factor = _mm512_set1_ps(scale);
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t channel = 0; channel < channels; channel += 2 * kLanes) {
        const auto kept = drops.kept(keys[token], channel);
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t n = channels - channel - half * kLanes, at = token * channels + channel + half * kLanes;
          if (n <= 0) break;
          const auto own = static_cast<__mmask16>(kept >> (half * kLanes));
          if (is_bf16) {
            const auto* from = static_cast<const BFloat16*>(x) + at;
            store(static_cast<BFloat16*>(to) + at, _mm512_maskz_mul_ps(own, widened(from, n), factor), n);
          } else {
            const auto numbers = _mm512_maskz_loadu_ps(first(n), static_cast<const float*>(x) + at);
            _mm512_mask_storeu_ps(static_cast<float*>(to) + at, first(n), _mm512_maskz_mul_ps(own, numbers, factor));
          }
        }
      }
    }
  };
  at::parallel_for(0, tokens, std::max<int64_t>(1, 32768 / std::max<int64_t>(channels, 1)), work);
}

// from [rows, columns] -> to [columns, rows].
void transpose(const BFloat16* from, int64_t rows, int64_t columns, BFloat16* to) {
  constexpr int64_t side = 2 * kLanes;  // of a square in which every row is a cache line
  at::parallel_for(0, (columns + side - 1) / side, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; row += side) {
      for (int64_t column = begin * side; column < std::min(end * side, columns); column += side) {
        if (row + side > rows || column + side > columns) {
          for (int64_t r = row; r < std::min(row + side, rows); ++r) {
            for (int64_t c = column; c < std::min(column + side, columns); ++c) {
              to[c * rows + r] = from[r * columns + c];
            }
          }
          continue;
        }
        Square halves[2];  // each 16 pairs of columns of 16 rows
        for (int64_t half = 0; half < 2; ++half) {
          for (int64_t i = 0; i < kLanes; ++i) {
            halves[half][i] = _mm512_loadu_si512(from + (row + half * kLanes + i) * columns + column);
          }
          transpose_square(halves[half]);
        }
        for (int64_t i = 0; i < kLanes; ++i) {
          auto joined = [](__m512i low, __m512i high) {
            const auto lower = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(low));
            return _mm512_inserti64x4(lower, _mm512_cvtepi32_epi16(high), 1);
          };
          auto* even = to + (column + 2 * i) * rows + row;
          _mm512_storeu_si512(even, joined(halves[0][i], halves[1][i]));
          _mm512_storeu_si512(
              even + rows, joined(_mm512_srli_epi32(halves[0][i], 16), _mm512_srli_epi32(halves[1][i], 16)));
        }
      }
    }
  });
}

// Of each row of logits = products / scaling: losses[row] = log Z - logits[label], 0 where the label is `ignored`; and
// with `gradients` the products become the gradient of the loss with smoothed labels + z_loss_coef * (log Z)^2. Returns
// how many labels are no class, or -1: there was no memory.
int64_t softmax_of_rows(
    BFloat16* products, const int64_t* labels, float* losses, int64_t rows, int64_t classes, float scaling,
    float z_loss_coef, float label_smoothing, int64_t ignored, bool gradients) {
  std::atomic<int64_t> unknown{0};
  const auto work = [&](int64_t begin, int64_t end) {
    std::vector<float> exponentials(padded(classes));
    for (int64_t row = begin; row < end; ++row) {
      auto* logits = products + row * classes;
      const int64_t label = labels[row];
      if (label < 0 || label >= classes) {
        if (label != ignored) ++unknown;
        losses[row] = 0;
        if (gradients) std::memset(logits, 0, classes * sizeof(BFloat16));
        continue;
      }
      auto maximum = _mm512_set1_ps(kHidden), sum = _mm512_setzero_ps();
      for (int64_t at = 0; at < classes; at += kLanes) {
        maximum = _mm512_mask_max_ps(maximum, first(classes - at), maximum, widened(logits + at, classes - at));
      }
      const float largest = _mm512_reduce_max_ps(maximum), factor = static_cast<float>(M_LOG2E) / scaling;
      const auto shift = _mm512_set1_ps(largest * factor);
      for (int64_t at = 0; at < classes; at += kLanes) {
        const auto seen = first(classes - at);
        auto x = exp2(_mm512_fmsub_ps(widened(logits + at, classes - at), _mm512_set1_ps(factor), shift));
        x = _mm512_maskz_mov_ps(seen, x);
        sum = _mm512_add_ps(sum, x);
        _mm512_storeu_ps(exponentials.data() + at, x);
      }
      const float total = _mm512_reduce_add_ps(sum), log_z = largest / scaling + std::log(total);
      const float of_label = static_cast<float>(logits[label]) / scaling;
      losses[row] = log_z - of_label;
      if (!gradients) continue;
      const float slope = (1 + 2 * z_loss_coef * log_z) / (total * scaling);
      const float of_each = label_smoothing / (classes * scaling);
      for (int64_t at = 0; at < classes; at += kLanes) {
        const auto x = _mm512_mul_ps(_mm512_loadu_ps(exponentials.data() + at), _mm512_set1_ps(slope));
        store(logits + at, _mm512_sub_ps(x, _mm512_set1_ps(of_each)), classes - at);
      }
      logits[label] = exponentials[label] * slope - of_each - (1 - label_smoothing) / scaling;
    }
  };
  return had_memory([&] { at::parallel_for(0, rows, 16, work); }) ? unknown.load() : -1;
}
}
