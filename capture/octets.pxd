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

    static inline void hc_prefetch(const unsigned char *from) {
        __builtin_prefetch(from);
        __builtin_prefetch(from + 64);
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
    /* A bit for each of 16 bytes that cannot stand in a JSON string as it is: control characters, a quote, a backslash,
       DEL, and bytes above 127, which are negative as signed numbers. */
    static inline unsigned hc_special(__m128i bytes) {
        return (unsigned)_mm_movemask_epi8(_mm_or_si128(
            _mm_or_si128(_mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20)), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x22))),
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x5C)), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7F)))));
    }
    #endif

    /* Sixteen bytes, then eight bytes at once. */
    static inline Py_ssize_t hc_plain(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0;
    #if defined(__SSE2__)
        for (; i + 16 <= length; i += 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
            unsigned special = hc_special(bytes);
            _mm_storeu_si128((__m128i *)(to + i), bytes);
            if (special)
                return i + __builtin_ctz(special);
        }
    #endif
        for (; i + 8 <= length; i += 8) {
            const uint64_t ones = UINT64_C(0x0101010101010101);
            uint64_t word = hc_load64(from + i), special;
            memcpy(to + i, from + i, 8);
            /* A borrow can set a high bit only behind the first special byte, so the first is exact. */
            special = (word | (word - ones * 0x20) | ((word ^ ones * 0x22) - ones) | ((word ^ ones * 0x5C) - ones)
                       | ((word ^ ones * 0x7F) - ones)) & ones * 0x80;
            if (special)
                return i + (__builtin_ctzll(special) >> 3);
        }
        while (i < length && from[i] >= 0x20 && from[i] < 0x7F && from[i] != 0x22 && from[i] != 0x5C) {
            to[i] = from[i];
            i++;
        }
        return i;
    }

    /* What follows the backslash of a byte that is special, not above 127; 0: u00 and two hexadecimal digits. */
    static const unsigned char hc_letters[128] = {
        [8] = 'b', [9] = 't', [10] = 'n', [12] = 'f', [13] = 'r', [0x22] = 0x22, [0x5C] = 0x5C};

    static inline unsigned char *hc_escape(unsigned char *to, unsigned char c) {
        static const char hex[] = "0123456789abcdef";
        to[0] = 0x5C;
        to[1] = hc_letters[c];
        if (__builtin_expect(to[1] != 0, 1))
            return to + 2;
        memcpy(to + 1, "u00", 3);
        to[4] = (unsigned char)hex[c >> 4];
        to[5] = (unsigned char)hex[c & 15];
        return to + 6;
    }

    /* What was written, or -1: a byte is above 127. */
    static inline Py_ssize_t hc_text(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        unsigned char *begin = to;
        Py_ssize_t i = 0;
    #if defined(__SSE2__)
        while (i + 32 <= length) {  /* sixteen bytes; the rest is read ahead of */
            __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
            unsigned special = hc_special(bytes);
            Py_ssize_t done = 0;
            _mm_storeu_si128((__m128i *)to, bytes);
            if (special) {
                if (_mm_movemask_epi8(bytes))
                    return -1;
                do {
                    Py_ssize_t at = __builtin_ctz(special);
                    to = hc_escape(to + (at - done), from[i + at]);
                    done = at + 1;
                    _mm_storeu_si128((__m128i *)to, _mm_loadu_si128((const __m128i *)(from + i + done)));
                    special &= special - 1;
                } while (special);
            }
            to += 16 - done;
            i += 16;
        }
    #endif
        while (i < length) {
            Py_ssize_t run = hc_plain(to, from + i, length - i);
            i += run;
            to += run;
            if (i == length)
                break;
            if (from[i] > 127)
                return -1;
            to = hc_escape(to, from[i]);
            i++;
        }
        return to - begin;
    }

    /* Visible ASCII in lower case, up to a colon, a quote, a backslash or anything else. */
    static inline Py_ssize_t hc_name(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0;
    #if defined(__SSE2__)
        for (; i + 16 <= length; i += 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
            unsigned special = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x3A)))
                | (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x20))) | hc_special(bytes);
            __m128i upper = _mm_and_si128(_mm_cmpgt_epi8(bytes, _mm_set1_epi8(0x40)),
                                          _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x5B)));
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

    /* In blocks whose count fits a byte, which compilers turn into vector instructions. */
    static inline Py_ssize_t hc_controls(const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0, total = 0;
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

    /* Two digits at a time, from the end. Writes 20 bytes, however many of them are digits. */
    static inline unsigned char *hc_decimal(unsigned char *to, uint64_t value) {
        static const char pairs[] =
            "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051"
            "52535455565758596061626364656667686970717273747576777879808182838485868788899091929394959697989900";
        unsigned char digits[40];
        int at = 20;
        while (value >= 100) {
            at -= 2;
            memcpy(digits + at, pairs + 2 * (value % 100), 2);
            value /= 100;
        }
        if (value >= 10) {
            at -= 2;
            memcpy(digits + at, pairs + 2 * value, 2);
        } else {
            digits[--at] = (unsigned char)(48 + value);
        }
        memcpy(to, digits + at, 20);
        return to + (20 - at);
    }
    """
    void hc_prefetch(const unsigned char *place) nogil
    unsigned int hc_u32(const unsigned char *source) nogil
    Py_ssize_t hc_plain(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_text(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_name(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    unsigned long long hc_mark(const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_controls(const unsigned char *source, Py_ssize_t length) nogil
    unsigned char *hc_decimal(unsigned char *to, unsigned long long value) nogil

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

cdef inline bytes part(bytes data, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, end - start)

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
