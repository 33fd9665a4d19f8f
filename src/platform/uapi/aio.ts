/** Asynchronous I/O of the kernel: include/uapi/linux/aio_abi.h. */

/** Read at an offset. */
export const IOCB_CMD_PREAD = 0;
/** Write at an offset. */
export const IOCB_CMD_PWRITE = 1;
/** In `aio_flags`: count the end of the operation in the eventfd `aio_resfd`. */
export const IOCB_FLAG_RESFD = 1;

/**
 * `struct iocb`: aio_lio_opcode u16; aio_rw_flags, aio_fildes, aio_flags and aio_resfd u32; aio_data, aio_buf, aio_nbytes and
 * aio_offset u64.
 */
export const IOCB = {
  sizeof: 64,
  aio_data: 0,
  aio_rw_flags: 12,
  aio_lio_opcode: 16,
  aio_fildes: 20,
  aio_buf: 24,
  aio_nbytes: 32,
  aio_offset: 40,
  aio_flags: 56,
  aio_resfd: 60,
} as const;

/** `struct io_event`: four u64, of which `data` is that of the operation; `res` is signed. */
export const IO_EVENT = { sizeof: 32, data: 0, res: 16 } as const;
