# The C forms of octets.py.

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp, memcpy, memmove

from http_capture.capture.source.block cimport Buffer

ctypedef const unsigned char *Octets
ctypedef unsigned char *Room

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* The wheel is for any x86-64, so what needs AVX2 is a function of its own, called where the processor has it, and
       only for what is long enough to be worth the call. HC_NARROW: without, for the tests. */
    #if defined(__x86_64__) && defined(__GNUC__) && !defined(HC_NARROW)
    #include <immintrin.h>
    #define HC_WIDE __attribute__((target("avx2,popcnt")))
    #define HC_IS_WIDE() (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"))
    #endif

    static inline void hc_prefetch(const unsigned char *from) {
        __builtin_prefetch(from);
        __builtin_prefetch(from + 64);
    }

    /* By reading it: a prefetch of what no TLB knows the place of does less (measured: a tenth of all time with 20,000
       connections). Nobody waits for what is read. */
    static inline void hc_prefetch_number(const long long *place) {
        (void)*(volatile const long long *)place;
    }

    static inline void hc_prefetch_place(PyObject *items, Py_ssize_t at) {
        (void)*(PyObject *volatile *)(((PyListObject *)items)->ob_item + at);
    }

    static inline void hc_prefetch_object(void *item) {
        (void)*(volatile const Py_ssize_t *)item;
        __builtin_prefetch((const char *)item + 64);
        hc_prefetch((const unsigned char *)item + 128);
    }

    static inline void hc_prefetch_item(PyObject *items, Py_ssize_t at) {
        hc_prefetch_object(PyList_GET_ITEM(items, at));
    }

    static inline uint64_t hc_load64(const unsigned char *from) {
        uint64_t word;
        memcpy(&word, from, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }

    static inline uint32_t hc_u32(const unsigned char *from) {
        return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | (uint32_t)from[3];
    }

    static inline uint32_t hc_load32(const unsigned char *from) {
        return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
    }

    #if defined(__SSE2__)
    /* A bit for each of 16 bytes outside a range, of which `above` is 128 less its length, or that is a quote or a
       backslash: subtracting what the range begins with wraps, and a sum that saturates has its high bit outside. */
    static inline unsigned hc_outside(__m128i bytes, char begin, char above) {
        return (unsigned)_mm_movemask_epi8(_mm_or_si128(
            _mm_adds_epu8(_mm_sub_epi8(bytes, _mm_set1_epi8(begin)), _mm_set1_epi8(above)),
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x22)), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x5C)))));
    }

    /* Those that cannot stand in a JSON string as they are: not 0x20 to 0x7E, a quote, a backslash. */
    static inline unsigned hc_special(__m128i bytes) {
        return hc_outside(bytes, 0x20, 128 - 95);
    }
    #endif

    /* The high bit of each of 8 bytes that is special. A borrow can set one only behind the first special byte, so the
       first is exact. */
    static inline uint64_t hc_special64(uint64_t word) {
        const uint64_t ones = UINT64_C(0x0101010101010101);
        return (word | (word - ones * 0x20) | ((word ^ ones * 0x22) - ones) | ((word ^ ones * 0x5C) - ones)
                | ((word ^ ones * 0x7F) - ones)) & ones * 0x80;
    }

    /* Whole steps, then one that ends where the bytes end and copies some of them again. */
    static inline Py_ssize_t hc_plain(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0;
    #if defined(__SSE2__)
        if (length >= 16) {
            while (1) {
                __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
                unsigned special = hc_special(bytes);
                _mm_storeu_si128((__m128i *)(to + i), bytes);
                if (special)
                    return i + __builtin_ctz(special);
                i += 16;
                if (i + 16 > length) {
                    if (i == length)
                        return i;
                    i = length - 16;
                }
            }
        }
    #endif
        if (length >= 8) {
            while (1) {
                uint64_t special = hc_special64(hc_load64(from + i));
                memcpy(to + i, from + i, 8);
                if (special)
                    return i + (__builtin_ctzll(special) >> 3);
                i += 8;
                if (i + 8 > length) {
                    if (i == length)
                        return i;
                    i = length - 8;
                }
            }
        }
        if (length >= 4) {  /* the first four and the last four */
            uint64_t special = hc_special64(hc_load32(from) | (uint64_t)hc_load32(from + length - 4) << 32);
            memcpy(to, from, 4);
            memcpy(to + length - 4, from + length - 4, 4);
            if (!special)
                return length;
            i = __builtin_ctzll(special) >> 3;
            return i < 4 ? i : i + length - 8;
        }
        while (i < length && from[i] >= 0x20 && from[i] < 0x7F && from[i] != 0x22 && from[i] != 0x5C) {
            to[i] = from[i];
            i++;
        }
        return i;
    }

    /* How a byte that is special, not above 127, is written; 0: as u00 and two hexadecimal digits. */
    static const unsigned char hc_escapes[128][2] = {
        [8] = {0x5C, 'b'}, [9] = {0x5C, 't'}, [10] = {0x5C, 'n'}, [12] = {0x5C, 'f'}, [13] = {0x5C, 'r'},
        [0x22] = {0x5C, 0x22}, [0x5C] = {0x5C, 0x5C}};

    static inline unsigned char *hc_escape(unsigned char *to, unsigned char c) {
        static const char hex[] = "0123456789abcdef";
        uint16_t two;
        memcpy(&two, hc_escapes[c], 2);
        if (__builtin_expect(two != 0, 1)) {
            memcpy(to, &two, 2);
            return to + 2;
        }
        to[0] = 0x5C;
        memcpy(to + 1, "u00", 3);
        to[4] = (unsigned char)hex[c >> 4];
        to[5] = (unsigned char)hex[c & 15];
        return to + 6;
    }

    /* Where the next goes, or NULL: a byte is above 127. */
    static inline unsigned char *hc_text_tail(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        while (1) {
            Py_ssize_t run = hc_plain(to, from, length);
            to += run;
            if (run == length)
                return to;
            if (from[run] > 127)
                return NULL;
            to = hc_escape(to, from[run]);
            from += run + 1;
            length -= run + 1;
        }
    }

    #if defined(HC_WIDE)
    /* For each set of special bytes among 8, how the 8, a backslash at place 8 of the same register, become up to 16. */
    #define HC_PUT0(...) {0, __VA_ARGS__}, {8, 0, __VA_ARGS__},
    #define HC_PUT1(...) HC_PUT0(1, __VA_ARGS__) HC_PUT0(8, 1, __VA_ARGS__)
    #define HC_PUT2(...) HC_PUT1(2, __VA_ARGS__) HC_PUT1(8, 2, __VA_ARGS__)
    #define HC_PUT3(...) HC_PUT2(3, __VA_ARGS__) HC_PUT2(8, 3, __VA_ARGS__)
    #define HC_PUT4(...) HC_PUT3(4, __VA_ARGS__) HC_PUT3(8, 4, __VA_ARGS__)
    #define HC_PUT5(...) HC_PUT4(5, __VA_ARGS__) HC_PUT4(8, 5, __VA_ARGS__)
    #define HC_PUT6(...) HC_PUT5(6, __VA_ARGS__) HC_PUT5(8, 6, __VA_ARGS__)
    static const unsigned char hc_spread[256][16] __attribute__((aligned(64))) = {HC_PUT6(7) HC_PUT6(8, 7)};

    /* `set` is a place in the table, 16 times the set: it has as many bits as the set. */
    HC_WIDE static inline unsigned char *hc_text_eight(unsigned char *to, __m128i bytes, unsigned set) {
        set &= 0xFF0;
        _mm_storeu_si128((__m128i *)to, _mm_shuffle_epi8(bytes, *(const __m128i *)(&hc_spread[0][0] + set)));
        return to + 8 + (size_t)__builtin_popcountll(set);
    }

    /* hc_text of the whole blocks of 32 bytes in at least 64. A block with one special byte is written twice, once from
       behind that byte, for which what follows the block is read; one with more is spread out by the table, without a
       branch for each. */
    HC_WIDE static unsigned char *hc_text_wide(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        /* By their low four bits: the special bytes with a letter, which all differ in them (form feed is rare, and left
           out), and the letters. The 1 is one that no byte with these bits is equal to. */
        const __m256i lettered = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            1, 0, 0x22, 0, 0, 0, 0, 0, 8, 9, 10, 0, 0x5C, 13, 0, 0));
        const __m256i letters = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 0, 0x22, 0, 0, 0, 0, 0, 'b', 't', 'n', 0, 0x5C, 'r', 0, 0));
        const unsigned char *last = from + length - 32, *last_but_one = last - 32;
        for (; from <= last; from += 32) {
            __m256i bytes = _mm256_loadu_si256((const __m256i *)from), low, high;
            __m256i known = _mm256_cmpeq_epi8(bytes, _mm256_shuffle_epi8(lettered, bytes));
            unsigned special = (unsigned)_mm256_movemask_epi8(_mm256_or_si256(known, _mm256_adds_epu8(
                _mm256_sub_epi8(bytes, _mm256_set1_epi8(0x20)), _mm256_set1_epi8(128 - 95))));
            if (!special) {
                _mm256_storeu_si256((__m256i *)to, bytes);
                to += 32;
                continue;
            }
            if (__builtin_expect(special != (unsigned)_mm256_movemask_epi8(known), 0)) {
                to = hc_text_tail(to, from, 32);
                if (to == NULL)
                    return NULL;
                continue;
            }
            if (!(special & (special - 1)) && from <= last_but_one) {
                int at = __builtin_ctz(special);
                _mm256_storeu_si256((__m256i *)to, bytes);
                memcpy(to + at, hc_escapes[from[at]], 2);
                _mm256_storeu_si256((__m256i *)(to + at + 2), _mm256_loadu_si256((const __m256i *)(from + at + 1)));
                to += 33;
                continue;
            }
            bytes = _mm256_blendv_epi8(bytes, _mm256_shuffle_epi8(letters, bytes), known);
            low = _mm256_unpacklo_epi64(bytes, _mm256_set1_epi8(0x5C));
            high = _mm256_unpackhi_epi64(bytes, _mm256_set1_epi8(0x5C));
            to = hc_text_eight(to, _mm256_castsi256_si128(low), special << 4);
            to = hc_text_eight(to, _mm256_castsi256_si128(high), special >> 4);
            to = hc_text_eight(to, _mm256_extracti128_si256(low, 1), special >> 12);
            to = hc_text_eight(to, _mm256_extracti128_si256(high, 1), special >> 20);
        }
        return to;
    }
    #endif

    /* What was written, or -1: a byte is above 127. */
    static inline Py_ssize_t hc_text(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        unsigned char *begin = to;
    #if defined(HC_WIDE)
        if (length >= 64 && HC_IS_WIDE()) {
            to = hc_text_wide(to, from, length);
            if (to == NULL)
                return -1;
            from += length & ~(Py_ssize_t)31;
            length &= 31;
        }
    #endif
    #if defined(__SSE2__)
        for (; length >= 32; from += 16, length -= 16) {  /* sixteen bytes; the rest is read ahead of */
            __m128i bytes = _mm_loadu_si128((const __m128i *)from);
            unsigned special = hc_special(bytes);
            _mm_storeu_si128((__m128i *)to, bytes);
            if (special) {
                if (_mm_movemask_epi8(bytes))
                    return -1;
                do {
                    Py_ssize_t at = __builtin_ctz(special);
                    to = hc_escape(to + at, from[at]) - at - 1;
                    _mm_storeu_si128((__m128i *)(to + at + 1), _mm_loadu_si128((const __m128i *)(from + at + 1)));
                    special &= special - 1;
                } while (special);
            }
            to += 16;
        }
    #endif
        to = hc_text_tail(to, from, length);
        return to == NULL ? -1 : to - begin;
    }

    /* Visible ASCII in lower case, up to a colon, a quote, a backslash or anything else. */
    static inline Py_ssize_t hc_name(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0;
    #if defined(__SSE2__)
        for (; i + 16 <= length; i += 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
            unsigned special = hc_outside(bytes, 0x21, 128 - 94)
                | (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x3A)));
            /* A to Z, moved to the 26 smallest signed numbers */
            __m128i upper = _mm_cmplt_epi8(_mm_add_epi8(bytes, _mm_set1_epi8(0x80 - 0x41)), _mm_set1_epi8(26 - 128));
            _mm_storeu_si128((__m128i *)(to + i), _mm_or_si128(bytes, _mm_and_si128(upper, _mm_set1_epi8(0x20))));
            if (special)
                return i + __builtin_ctz(special);
        }
    #endif
        while (i < length && from[i] > 0x20 && from[i] < 0x7F && from[i] != 0x22 && from[i] != 0x5C && from[i] != 0x3A) {
            to[i] = (unsigned char)(from[i] - 0x41 < 26u ? from[i] | 0x20 : from[i]);
            i++;
        }
        return i;
    }

    static inline uint64_t hc_mark(const unsigned char *from, Py_ssize_t length) {
        const uint64_t fold = UINT64_C(0x2020202020202020);
        uint64_t first, last = 0, middle = 0, mixed;
        if (length >= 8) {
            first = hc_load64(from) | fold;
            last = hc_load64(from + length - 8) | fold;
            if (length > 16)
                middle = hc_load64(from + length / 2 - 4) | fold;
        } else if (length >= 4) {
            first = hc_load32(from) | 0x20202020u;
            last = hc_load32(from + length - 4) | 0x20202020u;
        } else if (length > 0) {
            first = (from[0] | (uint64_t)from[length / 2] << 8 | (uint64_t)from[length - 1] << 16) | 0x202020u;
        } else {
            first = 0;
        }
        mixed = first * UINT64_C(0x9E3779B97F4A7C15) ^ last * UINT64_C(0xC2B2AE3D27D4EB4F)
            ^ middle * UINT64_C(0xFF51AFD7ED558CCD) ^ (uint64_t)length * UINT64_C(0x165667B19E3779F9);
        return (mixed ^ mixed >> 32) & 0x7FFFFFFF;
    }

    #if defined(HC_WIDE)
    /* A bit for each of 32 bytes that is a control character. */
    HC_WIDE static inline uint32_t hc_controls_in(const unsigned char *from) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)from);
        return (uint32_t)_mm256_movemask_epi8(_mm256_or_si256(
            _mm256_cmpeq_epi8(_mm256_min_epu8(bytes, _mm256_set1_epi8(0x1F)), bytes),
            _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(0x7F))));
    }

    /* At least 32 bytes: the last block holds some of the one before again. */
    HC_WIDE static Py_ssize_t hc_controls_wide(const unsigned char *from, Py_ssize_t length) {
        const unsigned char *last = from + length - 32;
        Py_ssize_t total = 0;
        for (; from < last; from += 32)
            total += __builtin_popcount(hc_controls_in(from));
        return total + __builtin_popcount(hc_controls_in(last) >> (from - last));
    }
    #endif

    /* In blocks whose count fits a byte, which compilers turn into vector instructions. */
    static inline Py_ssize_t hc_controls(const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0, total = 0;
    #if defined(HC_WIDE)
        if (length >= 32 && HC_IS_WIDE())
            return hc_controls_wide(from, length);
    #endif
        for (; i + 64 <= length; i += 64) {
            unsigned char count = 0;
            for (int k = 0; k < 64; k++)
                count += (unsigned char)((from[i + k] < 0x20) | (from[i + k] == 0x7F));
            total += count;
        }
        for (; i < length; i++)
            total += (from[i] < 0x20) | (from[i] == 0x7F);
        return total;
    }

    static const char hc_pairs[] =
        "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051"
        "52535455565758596061626364656667686970717273747576777879808182838485868788899091929394959697989900";

    /* So many digits, with zeros in front, two at a time from the end. */
    static inline void hc_digits(unsigned char *to, uint64_t value, Py_ssize_t count) {
        while (count > 1) {
            count -= 2;
            memcpy(to + count, hc_pairs + 2 * (value % 100), 2);
            value /= 100;
        }
        if (count > 0)
            *to = (unsigned char)(48 + value % 10);
    }

    /* Nothing that was written is read again: what follows would wait for that. */
    static inline unsigned char *hc_decimal(unsigned char *to, uint64_t value) {
        static const uint64_t powers[20] = {
            0, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000, UINT64_C(10000000000),
            UINT64_C(100000000000), UINT64_C(1000000000000), UINT64_C(10000000000000), UINT64_C(100000000000000),
            UINT64_C(1000000000000000), UINT64_C(10000000000000000), UINT64_C(100000000000000000),
            UINT64_C(1000000000000000000), UINT64_C(10000000000000000000)};
        Py_ssize_t count = 1;
        while (count < 20 && value >= powers[count])
            count++;
        hc_digits(to, value, count);
        return to + count;
    }

    static inline unsigned char *hc_number(unsigned char *to, uint64_t value, Py_ssize_t size) {
        for (Py_ssize_t i = 8 * size; i > 0; to++)  /* compilers make one store of it where the size is known */
            *to = (unsigned char)(value >> (i -= 8));
        return to;
    }

    /* Three of the four parts end with a dot that stays; what is behind each is written over by the next. */
    static inline unsigned char *hc_ipv4(unsigned char *to, uint32_t value) {
    #define HC_TEN(...) \
        {__VA_ARGS__ '0', '.'}, {__VA_ARGS__ '1', '.'}, {__VA_ARGS__ '2', '.'}, {__VA_ARGS__ '3', '.'}, \
        {__VA_ARGS__ '4', '.'}, {__VA_ARGS__ '5', '.'}, {__VA_ARGS__ '6', '.'}, {__VA_ARGS__ '7', '.'}, \
        {__VA_ARGS__ '8', '.'}, {__VA_ARGS__ '9', '.'},
        static const unsigned char parts[260][4] = {
            HC_TEN() HC_TEN('1',) HC_TEN('2',) HC_TEN('3',) HC_TEN('4',) HC_TEN('5',) HC_TEN('6',) HC_TEN('7',)
            HC_TEN('8',) HC_TEN('9',) HC_TEN('1', '0',) HC_TEN('1', '1',) HC_TEN('1', '2',) HC_TEN('1', '3',)
            HC_TEN('1', '4',) HC_TEN('1', '5',) HC_TEN('1', '6',) HC_TEN('1', '7',) HC_TEN('1', '8',) HC_TEN('1', '9',)
            HC_TEN('2', '0',) HC_TEN('2', '1',) HC_TEN('2', '2',) HC_TEN('2', '3',) HC_TEN('2', '4',) HC_TEN('2', '5',)};
        for (int shift = 24; shift >= 0; shift -= 8) {
            unsigned part = value >> shift & 255;
            memcpy(to, parts[part], 4);
            to += 2 + (part > 9) + (part > 99);
        }
        return to - 1;
    }
    """
    void hc_prefetch(const unsigned char *place) nogil
    void hc_prefetch_number(const long long *place) nogil
    void hc_prefetch_place(list items, Py_ssize_t at)
    void hc_prefetch_item(list items, Py_ssize_t at)
    void hc_prefetch_object(void *item) nogil
    unsigned int hc_u32(const unsigned char *source) nogil
    Py_ssize_t hc_plain(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_text(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_name(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    unsigned long long hc_mark(const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_controls(const unsigned char *source, Py_ssize_t length) nogil
    unsigned char *hc_decimal(unsigned char *to, unsigned long long value) nogil
    void hc_digits(unsigned char *to, unsigned long long value, Py_ssize_t count) nogil
    unsigned char *hc_number(unsigned char *to, unsigned long long value, Py_ssize_t size) nogil
    unsigned char *hc_ipv4(unsigned char *to, unsigned int value) nogil

cdef inline int u16(Octets octets, Py_ssize_t at) noexcept:
    return octets[at] << 8 | octets[at + 1]

cdef inline long long u32(Octets octets, Py_ssize_t at) noexcept:
    return hc_u32(octets + at)

cdef inline unsigned long long u64(Octets octets, Py_ssize_t at) noexcept:
    return <unsigned long long>hc_u32(octets + at) << 32 | hc_u32(octets + at + 4)

cdef inline Octets octets_in(Buffer buffer) noexcept:
    with cython.boundscheck(False):  # an empty one has a place too, of which nothing is read
        return &buffer.octets[0]

cdef inline Octets octets_of(bytes data) noexcept:
    return <Octets>PyBytes_AS_STRING(data)

cdef inline Room room_of(bytearray data) noexcept:
    return <Room>PyByteArray_AS_STRING(data)

cdef inline void prefetch(Octets octets, Py_ssize_t at) noexcept:
    hc_prefetch(octets + at)

cdef inline void prefetch_place(list items, Py_ssize_t at) noexcept:
    hc_prefetch_place(items, at)

cdef inline void prefetch_item(list items, Py_ssize_t at) noexcept:
    hc_prefetch_item(items, at)

# Of a pointer: an object's count of references would be changed, which waits for what is only asked for here.
cdef inline void prefetch_object(void *item) noexcept:
    hc_prefetch_object(item)

cdef inline void prefetch_number(long long[::1] numbers, Py_ssize_t at) noexcept:
    with cython.boundscheck(False):
        hc_prefetch_number(&numbers[at])

cdef inline bytes part(bytes data, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, end - start)

cdef inline bytes part_as(bytes last, bytes data, Py_ssize_t start, Py_ssize_t end):
    if last is not None and PyBytes_GET_SIZE(last) == end - start and memcmp(
        PyBytes_AS_STRING(last), PyBytes_AS_STRING(data) + start, end - start
    ) == 0:
        return last
    return part(data, start, end)

cdef inline bytes copied(Octets octets, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(<const char *>octets + start, end - start)

cdef inline bytes joined(bytes head, Octets octets, Py_ssize_t start, Py_ssize_t end):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(head)
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size + end - start)
    memcpy(PyBytes_AS_STRING(data), PyBytes_AS_STRING(head), size)
    memcpy(PyBytes_AS_STRING(data) + size, octets + start, end - start)
    return data

cdef inline bytearray new_room(Py_ssize_t size):
    return PyByteArray_FromStringAndSize(NULL, size)

cdef inline int resize(bytearray data, Py_ssize_t size) except -1:
    return PyByteArray_Resize(data, size)

cdef inline void put(Room room, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    memcpy(room + at, PyBytes_AS_STRING(data) + start, end - start)

cdef inline void put_octets(Room room, Py_ssize_t at, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept:
    memcpy(room + at, octets + start, end - start)

cdef inline void again(Room room, Py_ssize_t at, Py_ssize_t start, Py_ssize_t end) noexcept:
    memmove(room + at, room + start, end - start)

cdef inline bint same(Room room, Py_ssize_t at, bytes data) noexcept:
    return memcmp(room + at, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)) == 0

cdef inline Py_ssize_t find(Octets octets, int octet, Py_ssize_t start, Py_ssize_t end) noexcept:
    cdef const void *found
    if start >= end:
        return end
    found = memchr(octets + start, octet, end - start)
    return <Octets>found - octets if found != NULL else end

cdef inline Py_ssize_t line_end(bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    return find(octets_of(data), 10, start, end)

cdef inline Py_ssize_t controls(bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    return hc_controls(octets_of(data) + start, end - start)

cdef inline Py_ssize_t plain(Room room, Py_ssize_t at, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept:
    return start + hc_plain(room + at, octets + start, end - start)

cdef inline Py_ssize_t text(Room room, Py_ssize_t at, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept:
    cdef Py_ssize_t written = hc_text(room + at, octets + start, end - start)
    return at + written if written >= 0 else -1

cdef inline Py_ssize_t field_name(Room room, Py_ssize_t at, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept:
    return start + hc_name(room + at, octets + start, end - start)

cdef inline int mark(Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept:
    return <int>hc_mark(octets + start, end - start)

cdef inline Py_ssize_t decimal(Room room, Py_ssize_t at, unsigned long long value) noexcept:
    return hc_decimal(room + at, value) - room

cdef inline void digits(Room room, Py_ssize_t at, unsigned long long value, Py_ssize_t count) noexcept:
    hc_digits(room + at, value, count)

cdef inline Py_ssize_t number(Room room, Py_ssize_t at, unsigned long long value, Py_ssize_t size) noexcept:
    return hc_number(room + at, value, size) - room

cdef inline Py_ssize_t ipv4(Room room, Py_ssize_t at, unsigned long long value) noexcept:
    return hc_ipv4(room + at, <unsigned int>value) - room
