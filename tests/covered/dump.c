/*
 * Linked into each extension of `make coverage`: what a child that ends by os._exit() has run is
 * written by nobody else, and what its parent had run before the fork is not the child's.
 */
void __gcov_dump(void);
void __gcov_reset(void);
void covered_dump(void);
void covered_reset(void);

void covered_dump(void)
{
    __gcov_dump();
}

void covered_reset(void)
{
    __gcov_reset();
}
