/*
 * Linked into each extension of `make coverage`: what a child that ends by os._exit() has run is
 * written by nobody else.  What its parent had run before the fork is counted once more.
 */
void __gcov_dump(void);
void covered_dump(void);

void covered_dump(void)
{
    __gcov_dump();
}
