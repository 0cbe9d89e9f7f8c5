# The C forms of digest.py.

from http_capture.capture.octets cimport Room

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t hc_rotate64(uint64_t x, int n) { return x >> n | x << (64 - n); }
    static inline uint32_t hc_rotate32(uint32_t x, int n) { return x << n | x >> (32 - n); }

    static const uint64_t hc_blake2b_iv[8] = {
        UINT64_C(0x6A09E667F3BCC908), UINT64_C(0xBB67AE8584CAA73B), UINT64_C(0x3C6EF372FE94F82B),
        UINT64_C(0xA54FF53A5F1D36F1), UINT64_C(0x510E527FADE682D1), UINT64_C(0x9B05688C2B3E6C1F),
        UINT64_C(0x1F83D9ABFB41BD6B), UINT64_C(0x5BE0CD19137E2179)};

    #define HC_G(a, b, c, d, x, y) \\
        v[a] += v[b] + m[x]; v[d] = hc_rotate64(v[d] ^ v[a], 32); v[c] += v[d]; v[b] = hc_rotate64(v[b] ^ v[c], 24); \\
        v[a] += v[b] + m[y]; v[d] = hc_rotate64(v[d] ^ v[a], 16); v[c] += v[d]; v[b] = hc_rotate64(v[b] ^ v[c], 63);
    #define HC_ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \\
        HC_G(0, 4, 8, 12, s0, s1) HC_G(1, 5, 9, 13, s2, s3) HC_G(2, 6, 10, 14, s4, s5) HC_G(3, 7, 11, 15, s6, s7) \\
        HC_G(0, 5, 10, 15, s8, s9) HC_G(1, 6, 11, 12, s10, s11) HC_G(2, 7, 8, 13, s12, s13) HC_G(3, 4, 9, 14, s14, s15)

    #define HC_ROUNDS(round) \\
        round(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \\
        round(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3) \\
        round(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4) \\
        round(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8) \\
        round(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13) \\
        round(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9) \\
        round(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11) \\
        round(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10) \\
        round(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5) \\
        round(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0) \\
        round(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \\
        round(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)

    /* RFC 7693 section 3.2. `total`: bytes hashed with this block. */
    static void hc_blake2b_block(uint64_t h[8], const unsigned char *block, uint64_t total, int last) {
        uint64_t v[16], m[16];
        int i;
        for (i = 0; i < 16; i++) {
            memcpy(&m[i], block + 8 * i, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            m[i] = __builtin_bswap64(m[i]);
    #endif
        }
        for (i = 0; i < 8; i++) {
            v[i] = h[i];
            v[i + 8] = hc_blake2b_iv[i];
        }
        v[12] ^= total;
        if (last)
            v[14] = ~v[14];
        HC_ROUNDS(HC_ROUND)
        for (i = 0; i < 8; i++)
            h[i] ^= v[i] ^ v[i + 8];
    }

    #if defined(HC_WIDE)
    /* The four columns, then the four diagonals, side by side. m[i] is words 2i and 2i + 1, twice: any two words are
       one instruction away, in either half. */
    #define HC_TWO(x, y) \\
        ((x) & 1 ? (y) & 1 ? _mm256_unpackhi_epi64(m[(x) / 2], m[(y) / 2]) \\
                           : _mm256_alignr_epi8(m[(y) / 2], m[(x) / 2], 8) \\
                 : (y) & 1 ? _mm256_blend_epi32(m[(x) / 2], m[(y) / 2], 0xCC) \\
                           : _mm256_unpacklo_epi64(m[(x) / 2], m[(y) / 2]))
    #define HC_FOUR(x, y, z, w) _mm256_blend_epi32(HC_TWO(x, y), HC_TWO(z, w), 0xF0)
    #define HC_G4(x, y) \\
        a = _mm256_add_epi64(_mm256_add_epi64(a, x), b); d = _mm256_shuffle_epi32(_mm256_xor_si256(d, a), 0xB1); \\
        c = _mm256_add_epi64(c, d); b = _mm256_shuffle_epi8(_mm256_xor_si256(b, c), by24); \\
        a = _mm256_add_epi64(_mm256_add_epi64(a, y), b); d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), by16); \\
        c = _mm256_add_epi64(c, d); b = _mm256_xor_si256(b, c); \\
        b = _mm256_xor_si256(_mm256_add_epi64(b, b), _mm256_srli_epi64(b, 63));
    /* The rows turn until a diagonal is a column, all but b: that one is ready last, and the next step waits for it. So
       the diagonals begin with the one of v[4], which is the last of RFC 7693. */
    #define HC_ROUND4(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \\
        HC_G4(HC_FOUR(s0, s2, s4, s6), HC_FOUR(s1, s3, s5, s7)) \\
        a = _mm256_permute4x64_epi64(a, 0x93); c = _mm256_permute4x64_epi64(c, 0x39); \\
        d = _mm256_permute4x64_epi64(d, 0x4E); \\
        HC_G4(HC_FOUR(s14, s8, s10, s12), HC_FOUR(s15, s9, s11, s13)) \\
        a = _mm256_permute4x64_epi64(a, 0x39); c = _mm256_permute4x64_epi64(c, 0x93); \\
        d = _mm256_permute4x64_epi64(d, 0x4E);

    HC_WIDE static void hc_blake2b_wide(uint64_t h[8], const unsigned char *block, uint64_t total, int last) {
        const __m256i by24 = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10));
        const __m256i by16 = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9));
        __m256i *state = (__m256i *)h, m[8];
        __m256i a = _mm256_loadu_si256(state), b = _mm256_loadu_si256(state + 1);
        __m256i c = _mm256_loadu_si256((const __m256i *)hc_blake2b_iv);
        __m256i d = _mm256_loadu_si256((const __m256i *)hc_blake2b_iv + 1);
        int i;
        for (i = 0; i < 8; i++)
            m[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)block + i));
        d = _mm256_xor_si256(d, _mm256_setr_epi64x((long long)total, 0, last ? -1 : 0, 0));
        HC_ROUNDS(HC_ROUND4)
        _mm256_storeu_si256(state, _mm256_xor_si256(_mm256_loadu_si256(state), _mm256_xor_si256(a, c)));
        _mm256_storeu_si256(state + 1, _mm256_xor_si256(_mm256_loadu_si256(state + 1), _mm256_xor_si256(b, d)));
    }
    #endif

    static void hc_blake2b_128(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        void (*compress)(uint64_t *, const unsigned char *, uint64_t, int) = hc_blake2b_block;
        uint64_t h[8];
        unsigned char block[128];
        Py_ssize_t at = 0;
    #if defined(__SSE2__)
        __m128i octets, high, low, nine = _mm_set1_epi8(9), letter = _mm_set1_epi8('a' - '0' - 10);
    #else
        static const char hex[] = "0123456789abcdef";
        int i;
    #endif
    #if defined(HC_WIDE)
        if (HC_IS_WIDE())
            compress = hc_blake2b_wide;
    #endif
        memcpy(h, hc_blake2b_iv, sizeof h);
        h[0] ^= 0x01010000 ^ 16;  /* no key, a digest of 16 bytes */
        for (; length - at > 128; at += 128)
            compress(h, from + at, (uint64_t)at + 128, 0);
        memset(block, 0, sizeof block);
        memcpy(block, from + at, (size_t)(length - at));
        compress(h, block, (uint64_t)length, 1);
    #if defined(__SSE2__)
        octets = _mm_loadu_si128((const __m128i *)h);
        high = _mm_and_si128(_mm_srli_epi16(octets, 4), _mm_set1_epi8(15));
        low = _mm_and_si128(octets, _mm_set1_epi8(15));
        high = _mm_add_epi8(_mm_add_epi8(high, _mm_set1_epi8('0')), _mm_and_si128(_mm_cmpgt_epi8(high, nine), letter));
        low = _mm_add_epi8(_mm_add_epi8(low, _mm_set1_epi8('0')), _mm_and_si128(_mm_cmpgt_epi8(low, nine), letter));
        _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi8(high, low));
        _mm_storeu_si128((__m128i *)to + 1, _mm_unpackhi_epi8(high, low));
    #else
        for (i = 0; i < 16; i++) {
            unsigned char octet = (unsigned char)(h[i >> 3] >> 8 * (i & 7));
            to[2 * i] = hex[octet >> 4];
            to[2 * i + 1] = hex[octet & 15];
        }
    #endif
    }

    /* RFC 3174. */
    static void hc_sha1_block(uint32_t h[5], const unsigned char *block) {
        uint32_t w[16], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        int i;
        for (i = 0; i < 16; i++)
            w[i] = hc_u32(block + 4 * i);
    #define HC_NEXT(i) (w[(i) & 15] = hc_rotate32(w[((i) + 13) & 15] ^ w[((i) + 8) & 15] ^ w[((i) + 2) & 15] ^ w[(i) & 15], 1))
    #define HC_STEP(a, b, c, d, e, function, constant, word) \\
        e += hc_rotate32(a, 5) + (function) + (word) + constant; b = hc_rotate32(b, 30);
    #define HC_CHOOSE(b, c, d) (d ^ (b & (c ^ d)))
    #define HC_PARITY(b, c, d) (b ^ c ^ d)
    #define HC_MAJORITY(b, c, d) ((b & c) | (d & (b | c)))
    #define HC_FIVE(i, function, constant, word) \\
        HC_STEP(a, b, c, d, e, function(b, c, d), constant, word(i)) \\
        HC_STEP(e, a, b, c, d, function(a, b, c), constant, word((i) + 1)) \\
        HC_STEP(d, e, a, b, c, function(e, a, b), constant, word((i) + 2)) \\
        HC_STEP(c, d, e, a, b, function(d, e, a), constant, word((i) + 3)) \\
        HC_STEP(b, c, d, e, a, function(c, d, e), constant, word((i) + 4))
    #define HC_FIRST(i) w[i]
        HC_FIVE(0, HC_CHOOSE, 0x5A827999, HC_FIRST)
        HC_FIVE(5, HC_CHOOSE, 0x5A827999, HC_FIRST)
        HC_FIVE(10, HC_CHOOSE, 0x5A827999, HC_FIRST)
        HC_STEP(a, b, c, d, e, HC_CHOOSE(b, c, d), 0x5A827999, w[15])
        HC_STEP(e, a, b, c, d, HC_CHOOSE(a, b, c), 0x5A827999, HC_NEXT(16))
        HC_STEP(d, e, a, b, c, HC_CHOOSE(e, a, b), 0x5A827999, HC_NEXT(17))
        HC_STEP(c, d, e, a, b, HC_CHOOSE(d, e, a), 0x5A827999, HC_NEXT(18))
        HC_STEP(b, c, d, e, a, HC_CHOOSE(c, d, e), 0x5A827999, HC_NEXT(19))
        HC_FIVE(20, HC_PARITY, 0x6ED9EBA1, HC_NEXT) HC_FIVE(25, HC_PARITY, 0x6ED9EBA1, HC_NEXT)
        HC_FIVE(30, HC_PARITY, 0x6ED9EBA1, HC_NEXT) HC_FIVE(35, HC_PARITY, 0x6ED9EBA1, HC_NEXT)
        HC_FIVE(40, HC_MAJORITY, 0x8F1BBCDC, HC_NEXT) HC_FIVE(45, HC_MAJORITY, 0x8F1BBCDC, HC_NEXT)
        HC_FIVE(50, HC_MAJORITY, 0x8F1BBCDC, HC_NEXT) HC_FIVE(55, HC_MAJORITY, 0x8F1BBCDC, HC_NEXT)
        HC_FIVE(60, HC_PARITY, 0xCA62C1D6, HC_NEXT) HC_FIVE(65, HC_PARITY, 0xCA62C1D6, HC_NEXT)
        HC_FIVE(70, HC_PARITY, 0xCA62C1D6, HC_NEXT) HC_FIVE(75, HC_PARITY, 0xCA62C1D6, HC_NEXT)
        h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e;
    }

    #if defined(HC_WIDE) && !defined(__clang__) && __GNUC__ >= 12  /* older ones cannot ask for it */
    #define HC_SHA
    /* Four rounds each, with the processor's own instructions; a is the highest word, and e is the a of four rounds
       before, turned. */
    #define HC_SHA_FOUR(t) \\
        if ((t) > 3) \\
            w[(t) & 3] = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32(w[(t) & 3], w[((t) + 1) & 3]), \\
                                                          w[((t) + 2) & 3]), w[((t) + 3) & 3]); \\
        e = (t) > 0 ? _mm_sha1nexte_epu32(before, w[(t) & 3]) : _mm_add_epi32(before, w[0]); \\
        before = abcd; abcd = _mm_sha1rnds4_epu32(abcd, e, (t) / 5);
    #define HC_SHA_TWENTY(t) \\
        HC_SHA_FOUR(t) HC_SHA_FOUR(t + 1) HC_SHA_FOUR(t + 2) HC_SHA_FOUR(t + 3) HC_SHA_FOUR(t + 4)

    __attribute__((target("sha,sse4.1")))
    static void hc_sha1_wide(uint32_t h[5], const unsigned char *block) {
        const __m128i order = _mm_setr_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m128i last = _mm_set_epi32((int)h[4], 0, 0, 0);
        __m128i first = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0x1B);
        __m128i w[4], abcd = first, before = last, e;
        int i;
        for (i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)block + i), order);
        HC_SHA_TWENTY(0) HC_SHA_TWENTY(5) HC_SHA_TWENTY(10) HC_SHA_TWENTY(15)
        h[4] = (uint32_t)_mm_extract_epi32(_mm_sha1nexte_epu32(before, last), 3);
        _mm_storeu_si128((__m128i *)h, _mm_shuffle_epi32(_mm_add_epi32(abcd, first), 0x1B));
    }
    #endif

    /* One block. */
    static void hc_sha1_base64(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        void (*compress)(uint32_t *, const unsigned char *) = hc_sha1_block;
        uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
        unsigned char block[64], digest[21];
        int i;
        memset(block, 0, sizeof block);
        memcpy(block, from, (size_t)length);
        block[length] = 0x80;
        block[62] = (unsigned char)(length >> 5);
        block[63] = (unsigned char)(length << 3);
    #if defined(HC_SHA)
        if (__builtin_cpu_supports("sha") && __builtin_cpu_supports("sse4.1"))
            compress = hc_sha1_wide;
    #endif
        compress(h, block);
        for (i = 0; i < 20; i++)
            digest[i] = (unsigned char)(h[i >> 2] >> 8 * (3 - (i & 3)));
        digest[20] = 0;
        for (i = 0; i < 21; i += 3) {
            uint32_t three = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | digest[i + 2];
            *to++ = letters[three >> 18];
            *to++ = letters[three >> 12 & 63];
            *to++ = letters[three >> 6 & 63];
            *to++ = letters[three & 63];
        }
        to[-1] = '=';
    }
    """
    void hc_blake2b_128(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    void hc_sha1_base64(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil

cdef inline void blake2b_128(Room room, Py_ssize_t at, Py_ssize_t start, Py_ssize_t end) noexcept:
    hc_blake2b_128(room + at, room + start, end - start)

cdef inline void sha1_base64(Room room, Py_ssize_t at, Py_ssize_t start, Py_ssize_t end) noexcept:
    hc_sha1_base64(room + at, room + start, end - start)
