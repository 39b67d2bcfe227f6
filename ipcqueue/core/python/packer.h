#pragma once
/*
 * Many tuples into the bytes of records, and back, for CPython: what struct does, without a call, a
 * bytes object and an argument tuple for each record.
 *
 * pack() takes only what needs no thought: tuples and lists of the right length, whose items are
 * ints, floats (numpy's as well), bytes and bools that fit.  For anything else it returns None,
 * having run nothing of the user's, and struct decides in _records/; so both ways accept the same,
 * and there is one place where errors are made.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdint.h>
#include <string.h>

typedef struct {
    char kind; /* i, u: integers; f: floats; ?: a bool; c: one byte; s: text */
    Py_ssize_t offset, width;
} Field;

typedef struct {
    PyObject_HEAD
    PyObject *cls; /* records are made of this class, and accepted; None: tuples */
    Field *fields;
    Py_ssize_t count, size;
    int padded; /* there is more than the fields; it is made zero, and tells nothing */
} Packer;

/* packing.c */
PyObject *packer_pack(Packer *self, PyObject *records);
PyObject *packer_pack_one(Packer *self, PyObject *record);

/* unpacking.c */
PyObject *packer_unpack(Packer *self, PyObject *data);

/* truths.c */
int packer_truth(char *to, PyObject *item);
PyObject *normalise(PyObject *module, PyObject *args);
