/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Invariant: a decoded value used every byte of its payload, no more and no less. */
#include "wire.h"

#include <errno.h>

int wire_decode(xdrproc_t proc, const uint8_t *payload, size_t len, void *value)
{
        XDR xdr;
        bool_t ok;

        if (!proc)
                return len == 0 ? 0 : -EBADMSG;
        if (len > UINT32_MAX)
                return -EBADMSG;
        /* libtirpc has no const; decoding only reads. */
        xdrmem_create(&xdr, (char *)(uintptr_t)payload, (u_int)len, XDR_DECODE);
        ok = proc(&xdr, value);
        if (ok && xdr_getpos(&xdr) != len)
                ok = FALSE;
        xdr_destroy(&xdr);
        return ok ? 0 : -EBADMSG;
}

int wire_encode(FrameHeader *header, xdrproc_t proc, const void *value, uint8_t *buf, size_t size)
{
        u_int len = 0;

        if (size < FRAME_HEADER_SIZE || size > UINT32_MAX)
                return -EMSGSIZE;
        if (proc) {
                XDR xdr;
                bool_t ok;

                xdrmem_create(&xdr, (char *)buf + FRAME_HEADER_SIZE, (u_int)(size - FRAME_HEADER_SIZE), XDR_ENCODE);
                ok = proc(&xdr, (void *)(uintptr_t)value);
                len = xdr_getpos(&xdr);
                xdr_destroy(&xdr);
                if (!ok)
                        return -EMSGSIZE;
        }
        header->length = FRAME_HEADER_SIZE + len;
        frame_write_header(buf, header);
        return 0;
}

size_t wire_size(xdrproc_t proc, const void *value)
{
        return FRAME_HEADER_SIZE + (proc ? xdr_sizeof(proc, (void *)(uintptr_t)value) : 0);
}

void wire_free(xdrproc_t proc, void *value)
{
        if (proc)
                xdr_free(proc, value);
}
