# The C forms of octets.py.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memchr, memcpy

from http_capture.capture.source.block cimport Buffer

cdef inline int u16(Buffer buffer, Py_ssize_t at) noexcept:
    return buffer.octets[at] << 8 | buffer.octets[at + 1]

cdef inline long long u32(Buffer buffer, Py_ssize_t at) noexcept:
    return <long long>u16(buffer, at) << 16 | u16(buffer, at + 2)

cdef extern from *:
    """
    static void http_capture_prefetch(const unsigned char *from) {
        __builtin_prefetch(from);
        __builtin_prefetch(from + 64);
    }
    """
    void http_capture_prefetch(const unsigned char *place) noexcept

cdef inline void prefetch(Buffer buffer, Py_ssize_t at) noexcept:
    http_capture_prefetch(&buffer.octets[at])

cdef inline bytes part(bytes data, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, end - start)

cdef inline bytes copied(const unsigned char[::1] octets, Py_ssize_t start, Py_ssize_t end):
    if end <= start:
        return b""
    return PyBytes_FromStringAndSize(<const char *>&octets[start], end - start)

cdef inline void put(unsigned char[::1] octets, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    if end > start:
        memcpy(&octets[at], PyBytes_AS_STRING(data) + start, end - start)

cdef inline Py_ssize_t line_end(bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    cdef const char *base = PyBytes_AS_STRING(data)
    cdef const char *found
    if start >= end:
        return end
    found = <const char *>memchr(base + start, 10, end - start)
    return found - base if found != NULL else end

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif

    /* Sixteen bytes, then eight bytes at once. What is special: control characters, a quote, a backslash, DEL, and bytes
       above 127, which are negative as signed numbers. */
    static inline Py_ssize_t hc_plain(unsigned char *to, const unsigned char *from, Py_ssize_t length) {
        Py_ssize_t i = 0;
    #if defined(__SSE2__)
        for (; i + 16 <= length; i += 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(from + i));
            int special = _mm_movemask_epi8(_mm_or_si128(
                _mm_or_si128(_mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20)), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x22))),
                _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x5C)), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7F)))));
            _mm_storeu_si128((__m128i *)(to + i), bytes);
            if (special)
                return i + __builtin_ctz(special);
        }
    #endif
        for (; i + 8 <= length; i += 8) {
            const uint64_t ones = UINT64_C(0x0101010101010101);
            uint64_t word, special;
            memcpy(&word, from + i, 8);
            memcpy(to + i, &word, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            word = __builtin_bswap64(word);
    #endif
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
    """
    Py_ssize_t hc_plain(unsigned char *to, const unsigned char *source, Py_ssize_t length) nogil
    Py_ssize_t hc_controls(const unsigned char *source, Py_ssize_t length) nogil

cdef inline Py_ssize_t controls(bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    return hc_controls(<const unsigned char *>PyBytes_AS_STRING(data) + start, end - start)

cdef inline Py_ssize_t plain(unsigned char[::1] octets, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    return start + hc_plain(&octets[at], <const unsigned char *>PyBytes_AS_STRING(data) + start, end - start)
