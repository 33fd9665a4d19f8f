/** What each error code means in this library, its usual causes, and what helps. Defined only here. */
import { getSystemErrorMap } from 'node:util';
import { ERRNO, type ErrorCode } from '../errors.js';

/** The explanation of one code, in sentences without a full stop. */
export interface CodeGuide {
  readonly meaning: string;
  readonly causes: readonly string[];
  readonly next: readonly string[];
}

/** The explanation of any code: this library's, or else the system's text. */
export function guideTo(code: ErrorCode): CodeGuide {
  const known = ERROR_CODES[code];
  if (known !== undefined) return known;
  return {
    meaning: getSystemErrorMap().get(-ERRNO[code])?.[1] ?? 'an error number of the kernel without a description',
    causes: ['the system or a driver returned it; anydma adds no meaning of its own'],
    next: [
      'find out which call failed: the error names it, and its manual page or driver explains more',
      'look at the kernel log',
    ],
  };
}

/** All codes of this library's own errors, and common codes of the system. */
export const ERROR_CODES: Readonly<Partial<Record<ErrorCode, CodeGuide>>> = {
  EPERM: {
    meaning: 'the system does not permit it',
    causes: ['this process lacks a privilege', 'a file is sealed against the operation'],
    next: ['find out which call failed: the error names it', 'run it as a user with that privilege'],
  },
  ENOENT: {
    meaning: 'something that was named does not exist',
    causes: ['there is no socket or file at that path', 'no external memory is exactly that range'],
    next: ['check that the server runs, and the path', 'unregister exactly the range that was registered'],
  },
  EINTR: {
    meaning: 'a system call was interrupted by a signal',
    causes: ['the process got a signal while it was waiting'],
    next: ['try again'],
  },
  EIO: {
    meaning: 'an operation below failed, without a more specific code',
    causes: [
      'the device failed to read or write memory',
      'the other side unmapped a different number of bytes than requested',
      'a device process did not start',
    ],
    next: ['read the reason and the cause of the error', 'do not reuse that memory before the device has been reset'],
  },
  ENXIO: {
    meaning: 'there is no device behind that name',
    causes: [
      'a device file without its device',
      'a named pipe or socket that was opened as a file',
      'an NVMe namespace that the controller does not have, or has no more',
    ],
    next: ['check the path, and that the driver of the device is loaded', 'anydma nvme info lists the namespaces'],
  },
  E2BIG: {
    meaning: 'one request contains too many parts',
    causes: ['a device name with more than three layers'],
    next: ['write bus=...,name=.../class=.../driver=..., each layer once'],
  },
  EBADF: {
    meaning: 'the descriptor is not open, or does not support the operation',
    causes: ['the descriptor was closed before', 'the memory of the rings of a copy engine was freed'],
    next: ['keep descriptors and views until nothing uses them'],
  },
  EAGAIN: {
    meaning: 'a resource is full at the moment',
    causes: ['the server accepts no more messages or connections at the moment'],
    next: ['wait until requests in progress are finished, then try again'],
  },
  ENOMEM: {
    meaning: 'there is not enough memory, or not enough memory may be locked',
    causes: [
      'mapping pins memory, and would exceed RLIMIT_MEMLOCK',
      'too few hugepages of that size are free',
      'the system has no more memory or address space',
    ],
    next: [
      'raise the limit: "ulimit -l", or LimitMEMLOCK= of a service',
      'reserve hugepages in /sys/kernel/mm/hugepages',
      'map less at once',
    ],
  },
  EACCES: {
    meaning: 'the memory, file or socket exists, but does not allow that kind of access',
    causes: [
      'a device is to write memory that is read-only, such as a file that was opened for reading',
      'a device used an access that its mapping does not grant',
      'an RDMA peer was refused: unmapped memory, a wrong key, a range beyond the end, or a missing right',
      'the socket or file belongs to another user',
      'another user serves at a vfio-user socket, in a folder that others can write to',
    ],
    next: [
      "map with access: 'read' (--access read)",
      'map again with the access that the device needs, and with remote: for peers',
      'read the hint of a refused RDMA request: it contains what the other side knows (device.explainPeer)',
      'check the owner and the mode with "ls -l"',
      'if that user is intended: vfio-user:PATH,user=NUMBER',
    ],
  },
  EFAULT: {
    meaning: 'an address is not mapped',
    causes: [
      'the device used an IOVA that is not mapped, or no longer mapped',
      'it accessed memory beyond the end of a mapping, or across two mappings',
      'memory that was registered by address is not mapped in this process',
    ],
    next: [
      'device.explain(iova) tells what is or was mapped at that address',
      'keep memory mapped until the device has finished using it',
      'for addresses in this process, see /proc/self/maps',
    ],
  },
  EBUSY: {
    meaning: 'something is in use, or is being changed',
    causes: [
      'memory is still mapped for a device, or a view of it is pinned',
      'a device is being probed or removed, or a mapping is being made or undone',
    ],
    next: ['unmap it there first: the error names the user', 'wait for the call in progress'],
  },
  EEXIST: {
    meaning: 'something else exists there already',
    causes: [
      'other memory is mapped at that IOVA, or this memory is mapped differently: another range, access or IOVA',
      'memory overlaps memory that is registered',
      'the device is probed already',
      'a file that is not a socket is at the path for a socket',
    ],
    next: [
      'unmap or use the existing mapping: the error names it',
      'leave the IOVA out; then the domain chooses a free one',
    ],
  },
  ENODEV: {
    meaning: 'there is no such device, or it was removed',
    causes: [
      'no bus has a device with that name',
      'the server of the device ended, or the connection to it is closed',
      'the driver does not support the device',
    ],
    next: ['"anydma devices" lists buses and devices', 'check that the server runs, then probe the device again'],
  },
  ENOTDIR: {
    meaning: 'a part of a path is not a directory',
    causes: ['the path has a file where a directory is needed'],
    next: ['check the path'],
  },
  EISDIR: {
    meaning: 'a directory was given instead of a file',
    causes: ['a directory was to be opened for writing'],
    next: ['give the path of a file'],
  },
  EINVAL: {
    meaning: 'an argument is not valid; nothing was done',
    causes: [
      'an address or length that is not a multiple of the page size or of the granule of the domain',
      'memory that is not registered, or not all in one area',
      'something was unmapped or unregistered twice',
      'an IOVA that the domain would ignore',
    ],
    next: ['the reason names the argument, and the hint says what is valid'],
  },
  ENFILE: {
    meaning: 'the system has too many files open',
    causes: ['all processes together have reached the limit of the kernel'],
    next: ['stop programs that are not needed', 'raise fs.file-max with sysctl'],
  },
  EMFILE: {
    meaning: 'this process has too many descriptors open',
    causes: ['each memfd uses one descriptor here, and one in the process of the device', 'RLIMIT_NOFILE is low'],
    next: ['map fewer and larger pieces', 'raise the limit: "ulimit -n"'],
  },
  ENOTTY: {
    meaning: 'the receiver does not support that request',
    causes: ['an ioctl for another kind of file, or for a newer kernel'],
    next: ['check that the path names the right device'],
  },
  EFBIG: {
    meaning: 'a file would become too large',
    causes: ['RLIMIT_FSIZE, or the limit of its file system'],
    next: ['raise the limit: "ulimit -f"', 'use less memory at once'],
  },
  ENOSPC: {
    meaning: 'there is no space left: for another mapping, for its IOVAs, or on a file system',
    causes: [
      'the entry limit of the domain is reached',
      'the windows of the domain have no free range of that length; IOVAs unmapped a moment ago can still be reserved',
      'a device with few address bits, such as edu, has few IOVAs',
      'an RDMA server has given its memory to other clients',
    ],
    next: [
      'map fewer and larger ranges',
      'unmap what is not needed',
      '"anydma devices --device NAME" shows the limits',
    ],
  },
  ESPIPE: {
    meaning: 'a file without positions was to be read or written at a position',
    causes: ['a pipe or socket was given where a file is needed'],
    next: ['use a file or a memfd'],
  },
  EROFS: {
    meaning: 'the file system is read-only',
    causes: [
      'a file on it was to be opened for writing, or a socket was to be created on it',
      'an NVMe namespace or zone is write protected',
    ],
    next: ["open the file for reading, and map it with access: 'read'", 'choose a path on another file system'],
  },
  EBADE: {
    meaning: 'what was compared differs',
    causes: ['NVMe: the blocks are not those that a compare was given'],
    next: ['read the blocks to see what is there'],
  },
  EILSEQ: {
    meaning: 'data and its check do not fit together',
    causes: ['NVMe: a guard, application tag or reference tag is not the one that is stored with a block'],
    next: ['compare the protection information of the call with what the block was written with'],
  },
  ENODATA: {
    meaning: 'there is nothing to read',
    causes: ['NVMe: a block was never written, or was deallocated'],
    next: ['write the block first'],
  },
  EPIPE: {
    meaning: 'the other side no longer reads',
    causes: ['the process at the other end of a connection has ended'],
    next: ['find out why it ended, then connect again'],
  },
  ERANGE: {
    meaning: 'a number is outside of its range',
    causes: ['an IOVA outside of the windows of the domain', 'a 64-bit register with a value of 2^53 or more'],
    next: ['leave the IOVA out; then the domain chooses one', '"anydma devices --device NAME" shows the windows'],
  },
  ENAMETOOLONG: {
    meaning: 'a path is too long',
    causes: ['the path of a UNIX socket has at most 107 bytes'],
    next: ['choose a shorter path, such as one in /tmp or /run'],
  },
  ENOSYS: {
    meaning: 'the kernel does not have that system call',
    causes: ['an old kernel, or a sandbox that blocks the call'],
    next: ['use a newer kernel, or allow the call in the sandbox'],
  },
  ELOOP: {
    meaning: 'too many symbolic links',
    causes: ['links in the path point to each other'],
    next: ['check the path'],
  },
  EPROTO: {
    meaning: 'the other side violated the protocol',
    causes: [
      'the process at the socket is not a vfio-user server, or has a defect',
      'the device reported something impossible',
    ],
    next: ['check the path', 'the connection is closed: probe the device again'],
  },
  EOVERFLOW: {
    meaning: 'a value is too large',
    causes: ['a size or an offset that the system can not represent'],
    next: ['use a smaller value'],
  },
  ENOTSOCK: {
    meaning: 'the descriptor is not a socket',
    causes: ['a descriptor of another kind was used as a socket'],
    next: ['check the path or descriptor'],
  },
  EDESTADDRREQ: {
    meaning: 'a message has no destination',
    causes: ['the socket is not connected'],
    next: ['connect it first'],
  },
  EMSGSIZE: {
    meaning: 'a message is too long',
    causes: ['the other side accepts less in one message', 'an RDMA message is longer than the receive for it'],
    next: ['transfer less at once'],
  },
  ENOTSUP: {
    meaning: 'this machine, domain or device does not support that',
    causes: [
      'system calls are not available here: the system is not Linux, or koffi is missing',
      'a part of a mapping was to be unmapped, but the domain can only unmap whole mappings',
      'no driver takes the device, or memory can not be mapped for it',
    ],
    next: ['"anydma devices" shows the platform and what it lacks', 'unmap whole mappings'],
  },
  EADDRINUSE: {
    meaning: 'another server uses the address',
    causes: ['a server listens at that socket'],
    next: ['use that server, stop it, or choose another path'],
  },
  ECONNABORTED: {
    meaning: 'this side ended the connection',
    causes: ['a call was not answered in time, so the connection was closed', 'the server was stopped'],
    next: ['find out why the other side was slow, then probe the device again'],
  },
  ECONNRESET: {
    meaning: 'the other side ended the connection',
    causes: [
      'the process that serves the device ended or crashed',
      'the server has a client already, and accepts only one',
    ],
    next: ['probe the device again when it is served: all mappings on it are lost', 'stop the other client'],
  },
  ENOTCONN: {
    meaning: 'there is no connection',
    causes: ['the device was removed, or its client was closed'],
    next: ['probe the device again'],
  },
  ETIMEDOUT: {
    meaning: 'the other side did not answer in time',
    causes: [
      'the process of the device hangs, is stopped, or is very busy',
      'the device lost its interrupt or its work',
      'RDMA requests were retried up to the limit: the peer is gone, its queue pair has failed, or there is no network path to it',
    ],
    next: [
      'find out what the process of the device does',
      'allow more time, also for connecting: vfio-user:PATH,timeout=MS',
      'check that both ports are active and have GIDs in one network ("anydma devices"), and that firewalls allow UDP port 4791',
    ],
  },
  ECONNREFUSED: {
    meaning: 'no server listens there',
    causes: [
      'the socket exists, but its server has ended',
      'the path is a folder or a plain file, not a socket',
      'no process listens at that TCP port',
    ],
    next: [
      'start the server again; it replaces an unused socket',
      'give the socket itself: vfio-user:FOLDER/cntrl for SPDK',
      'check that "anydma rdma serve" runs there, at that port',
    ],
  },
  EALREADY: {
    meaning: 'the operation is in progress already',
    causes: ['the same operation was started before, and has not ended'],
    next: ['wait for it to end'],
  },
  ECANCELED: {
    meaning: 'the operation was cancelled, and what it had done was undone',
    causes: [
      'an AbortSignal was aborted, or the command was interrupted',
      'the device or its driver was closed meanwhile',
      'an earlier request of that RDMA queue pair failed, so the queue pair stopped',
    ],
    next: ['nothing, if that was intended', 'find out what failed first: queuePair.failure, or the cause of the error'],
  },
};
