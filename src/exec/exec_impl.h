/* exec_impl.h - what the files of src/exec share. */
#ifndef AUTOSP_EXEC_IMPL_H
#define AUTOSP_EXEC_IMPL_H

#include "exec/exec.h"

/* Bytes of gradients reduced by one message: bounds the communicator's staging. */
#define REDUCE_CHUNK ((int64_t)32 << 20)

comm *exec_comm(exec *e);

#endif
