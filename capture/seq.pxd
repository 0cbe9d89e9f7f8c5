# C signatures of seq.py.

cdef long long difference(long long a, long long b) noexcept nogil
cdef long long advance(long long a, long long n) noexcept nogil
