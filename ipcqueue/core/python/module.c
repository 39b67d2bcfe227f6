/* The module itself, and its functions that belong to no end. */
#include "direct.h"

/* Exceptions of signal handlers that may strike, one after the other, in what must be done; a step
 * that fails so often fails for a reason of its own. */
enum { MAX_STRIKES = 100 };

/* Call a function that can be repeated until it has come to its end; then raise the first exception
 * that struck, but rather one that is no Exception (Ctrl-C).  Between its calls CPython looks for no
 * signal, as it would in a loop of Python. */
static PyObject *done(PyObject *function, PyObject *const *args, Py_ssize_t n)
{
    PyObject *result, *type = NULL, *error = NULL, *traceback = NULL;
    for (int strikes = 0;;) {
        result = PyObject_Vectorcall(function, args, (size_t)n, NULL);
        if (result != NULL || ++strikes == MAX_STRIKES)
            break;
        if (type == NULL) {
            PyErr_Fetch(&type, &error, &traceback);
        } else if (PyErr_GivenExceptionMatches(type, PyExc_Exception) &&
                   !PyErr_ExceptionMatches(PyExc_Exception)) {
            Py_DECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(traceback);
            PyErr_Fetch(&type, &error, &traceback);
        } else {
            PyErr_Clear();
        }
    }
    if (type == NULL)
        return result;
    Py_XDECREF(result);
    PyErr_Restore(type, error, traceback);
    return NULL;
}

static PyObject *persist(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    if (n < 1)
        return PyErr_Format(PyExc_TypeError, "persist() takes a function and its arguments");
    return done(args[0], args + 1, n - 1);
}

/* The body of a method that persistent() has made of a function. */
static PyObject *persistently(PyObject *function, PyObject *const *args, Py_ssize_t n)
{
    return done(function, args, n);
}

static PyMethodDef method = {
    "persistently", (PyCFunction)(void (*)(void))persistently, METH_FASTCALL, NULL};

/* A method that CPython calls in C.  For one of Python it looks for signals before the first step, and
 * an exception would skip all of it: a with statement does not call __exit__ again. */
static PyObject *persistent(PyObject *Py_UNUSED(module), PyObject *function)
{
    PyObject *bare = PyCFunction_New(&method, function);
    PyObject *bound = bare == NULL ? NULL : PyInstanceMethod_New(bare);
    Py_XDECREF(bare);
    return bound;
}

/* The next step of a generator.  Its end makes no exception, as in next() and send(): that needs
 * memory, and who has published must not hear that there was none. */
static PyObject *resume(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n)
{
    if (n != 3 || !PyGen_CheckExact(args[0]) || !PyList_CheckExact(args[2]) ||
        PyList_GET_SIZE(args[2]) != 1)
        return PyErr_Format(PyExc_TypeError,
                            "resume() takes a generator, an answer, and a list of one item");
    PyObject *next;
    switch (PyIter_Send(args[0], args[1], &next)) {
    case PYGEN_NEXT:
        return next;
    case PYGEN_RETURN:
        PyList_SetItem(args[2], 0, next);
        Py_RETURN_NONE;
    default:
        return NULL;
    }
}

static PyObject *blank(PyObject *Py_UNUSED(module), PyObject *size)
{
    Py_ssize_t n = PyLong_AsSsize_t(size);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    return PyBytes_FromStringAndSize(NULL, n);
}

static PyMethodDef functions[] = {
    {"blank", blank, METH_O,
     "blank(size): bytes of no known content, for one who fills them before anybody else sees them."},
    {"persist", (PyCFunction)(void (*)(void))persist, METH_FASTCALL,
     "persist(step, *arguments): call it until it has come to its end, whatever strikes meanwhile."},
    {"persistent", persistent, METH_O,
     "persistent(function): the same as a method, for a decorator; without names of arguments."},
    {"resume", (PyCFunction)(void (*)(void))resume, METH_FASTCALL,
     "resume(generator, answer, result): what it yields next; None at its end, and result[0] is set."},
    {NULL},
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

static int execute(PyObject *module)
{
    /* CPython refuses subinterpreters with a lock of their own (module_slots).  Those that share the
     * lock are refused here, in the same words, which _interpreter.py looks for: they would share the
     * objects of _core, which cffi makes once for the whole process. */
    static const char words[] =
        "module ipcqueue._direct does not support loading in subinterpreters";
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        /* What counts lines does not run in subinterpreters;
         * tests/project/test_interpreters.py does. */
        PyErr_SetString(PyExc_ImportError, words); /* not counted: GCOV_EXCL_LINE */
        return -1;                                 /* nor this: GCOV_EXCL_LINE */
    }
    PyType_Spec *bases[] = {&SlotSender_spec, &FrameSender_spec, &SlotReceiver_spec,
                            &FrameReceiver_spec};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        PyTypeObject *type = add_type(module, bases[i]);
        if (type == NULL)
            return -1;
        Py_DECREF(type);
    }
    struct state *state = PyModule_GetState(module);
    if (add_socket(module) < 0 || add_lock(module) < 0)
        return -1;
    if ((state->iteration = add_type(module, &Iteration_spec)) == NULL ||
        (state->batch = add_type(module, &Batch_spec)) == NULL ||
        (state->call = add_type(module, &Call_spec)) == NULL)
        return -1;
    return prepare_fields();
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct state *state = PyModule_GetState(module);
    Py_VISIT(state->iteration);
    Py_VISIT(state->batch);
    Py_VISIT(state->call);
    Py_VISIT(state->rlock);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct state *state = PyModule_GetState(module);
    Py_CLEAR(state->iteration);
    Py_CLEAR(state->batch);
    Py_CLEAR(state->call);
    Py_CLEAR(state->rlock);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters /* CPython 3.12 */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil /* CPython 3.13 */
    {Py_mod_gil, Py_MOD_GIL_USED}, /* it is the lock of every end; see _interpreter.py */
#endif
    {0, NULL},
};

PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "ipcqueue._direct",
    .m_doc = "The fast path into the core; see core/python/direct.h.",
    .m_size = sizeof(struct state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__direct(void)
{
    return PyModuleDef_Init(&definition);
}
