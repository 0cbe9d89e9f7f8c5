# The C forms of seq.py.

cdef inline long long difference(long long a, long long b) noexcept nogil:
    return (((a - b) + 0x80000000LL) & 0xFFFFFFFFLL) - 0x80000000LL

cdef inline long long advance(long long a, long long n) noexcept nogil:
    return (a + n) & 0xFFFFFFFFLL
