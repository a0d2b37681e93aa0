/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The trail of a fault: where a negative errno was born and through whom it came. The boundary that contains the
 * fault logs the trail, once. Verdicts (positive results) leave no trail. One thread.
 */
#pragma once

/* `return FAULT(-ENOMEM);` where a fault is born: a new trail. */
#define FAULT(r) fault_born((r), __FILE__, __LINE__, __func__)

/* `return PASS(r);` where a fault is handed up: one more step. Results that are no faults pass unchanged. */
#define PASS(r)                                           \
        ({                                                \
                int _r = (r);                             \
                _r < 0 ? fault_pass(_r, __func__) : _r;   \
        })

int fault_born(int r, const char *file, int line, const char *function);
int fault_pass(int r, const char *function);

/* "lockfile_take (lockfile.c:88) < storage_take < ...", valid until the next fault is born. */
const char *fault_trail(void);
