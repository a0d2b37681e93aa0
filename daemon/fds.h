/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The budget of open files. The kernel hands out the lowest free number, so a high number means that the table is nearly
 * full: the last FDS_SPARE are kept for administrators, logs and /proc. */
#pragma once

#include <stdbool.h>

#define FDS_SPARE 64U

/* Raises the soft limit to the hard one; needs no privilege. */
void fds_raise_limit(void);

/* The limit in force. */
unsigned fds_limit(void);

/* This fd is one of the spare ones: whoever is no administrator has to give it back. */
bool fds_is_spare(int fd);
