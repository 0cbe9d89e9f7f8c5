# C types of null.py.

cdef class Null:
    cdef public long long records, bytes
