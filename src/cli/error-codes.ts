/** What each error code means in this library, what usually causes it, and what helps. The one place that says so. */
import { getSystemErrorMap } from 'node:util';
import { ERRNO, type ErrorCode } from '../errors.js';

/** About one code. Sentences without a full stop. */
export interface CodeGuide {
  readonly meaning: string;
  readonly causes: readonly string[];
  readonly next: readonly string[];
}

/** About any code: those that this library gives a meaning of its own, and the others of Linux in the system's words. */
export function guideTo(code: ErrorCode): CodeGuide {
  const known = ERROR_CODES[code];
  if (known !== undefined) return known;
  return {
    meaning: getSystemErrorMap().get(-ERRNO[code])?.[1] ?? 'a number of the kernel that has no words',
    causes: ['the system, or a driver, said so; anydma adds nothing to it'],
    next: [
      'see which call it was: the error names it, and its manual page or driver knows more',
      'look at the kernel log',
    ],
  };
}

/** Every code that errors of this library itself can have, and those of the system that are met most. */
export const ERROR_CODES: Readonly<Partial<Record<ErrorCode, CodeGuide>>> = {
  EPERM: {
    meaning: 'the system does not permit it',
    causes: ['it needs a privilege that this process lacks', 'a file is sealed against it'],
    next: ['see which call it was: the error names it', 'run it as a user who may do that'],
  },
  ENOENT: {
    meaning: 'there is no such thing',
    causes: ['no socket or file is at that path', 'no external memory is exactly that range'],
    next: ['is the server running, and the path right?', 'unregister exactly the range that was registered'],
  },
  EINTR: {
    meaning: 'a system call was interrupted by a signal',
    causes: ['the process got a signal while it was waiting'],
    next: ['try again'],
  },
  EIO: {
    meaning: 'something below failed, in a way that has no code of its own',
    causes: [
      'the device failed to read or write memory',
      'the other side unmapped another number of bytes than it was asked to',
      'a device process did not start',
    ],
    next: ['read the reason and the cause of the error', 'do not reuse that memory before the device was reset'],
  },
  ENXIO: {
    meaning: 'nothing is behind that name',
    causes: ['a device file without its device', 'a named pipe or socket that was opened as a file'],
    next: ['check the path, and that the driver of the device is loaded'],
  },
  E2BIG: {
    meaning: 'there is too much of something in one request',
    causes: ['a device name with more than three layers'],
    next: ['write bus=...,name=.../class=.../driver=..., each layer once'],
  },
  EBADF: {
    meaning: 'that descriptor is not open, or not for this',
    causes: ['the descriptor was closed before', 'the rings of a copy engine are gone'],
    next: ['keep descriptors and views until nothing uses them any more'],
  },
  EAGAIN: {
    meaning: 'not now: something is full',
    causes: ['the server takes no more messages, or no more connections, at the moment'],
    next: ['wait for what is under way, then try again'],
  },
  ENOMEM: {
    meaning: 'there is not enough memory, or not enough that may be locked',
    causes: [
      'mapping pins memory, and would pass RLIMIT_MEMLOCK',
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
    meaning: 'the memory, file or socket is there, but not for that kind of access',
    causes: [
      'a device is to write memory that is read-only, such as a file that was opened for reading',
      'a device did what its mapping does not grant',
      'a peer of RDMA was refused: memory that was unmapped, another key, past the end, or a right it does not have',
      'the socket or file belongs to another user',
      'another user serves at a socket of vfio-user, in a folder that others may write to',
    ],
    next: [
      "map with access: 'read' (--access read)",
      'map again with the access that the device needs, and with remote: for what peers need',
      'the hint of a refused request of RDMA has what the other side knows: device.explainPeer',
      'see "ls -l"',
      'if that user is meant: vfio-user:PATH,user=NUMBER',
    ],
  },
  EFAULT: {
    meaning: 'memory is not there: an address that is not mapped',
    causes: [
      'the device used an IOVA that is not mapped, or not any more',
      'it went past the end of a mapping, or across two of them',
      'memory that was registered by address is not mapped in this process',
    ],
    next: [
      'device.explain(iova) tells what is, or was, at that address',
      'keep memory mapped until the device is done with it',
      'for addresses in this process see /proc/self/maps',
    ],
  },
  EBUSY: {
    meaning: 'it is in use, or just being changed',
    causes: [
      'memory is still mapped by a device, or a view of it is pinned',
      'a device is just being probed or removed, a mapping made or undone',
    ],
    next: ['the error names who holds it: unmap there first', 'wait for the call that is under way'],
  },
  EEXIST: {
    meaning: 'something else is there already',
    causes: [
      'other memory is mapped at that IOVA, or this memory otherwise: another range, access or IOVA',
      'memory overlaps what is registered',
      'the device is probed already',
      'a file that is no socket is where a socket shall be',
    ],
    next: [
      'the error names the mapping in the way: unmap it, or use it',
      'leave the IOVA out, and the domain chooses one that is free',
    ],
  },
  ENODEV: {
    meaning: 'there is no such device, or it is gone',
    causes: [
      'no bus has a device of that name',
      'the server of the device ended, or the connection to it is closed',
      'it is not the device that the driver is for',
    ],
    next: ['"anydma devices" lists the buses', 'is the server running? then probe the device again'],
  },
  ENOTDIR: {
    meaning: 'a part of a path is no directory',
    causes: ['a file is where the path has a directory'],
    next: ['check the path'],
  },
  EISDIR: {
    meaning: 'it is a directory, where a file is needed',
    causes: ['a directory was to be opened for writing'],
    next: ['name a file'],
  },
  EINVAL: {
    meaning: 'an argument makes no sense; nothing was done',
    causes: [
      'an address or length that is not a multiple of the page size or of the granule of the domain',
      'memory that is not registered, or not all in one area',
      'something was unmapped or unregistered twice',
      'an IOVA that the domain would ignore',
    ],
    next: ['the reason says which argument, and the hint what would do'],
  },
  ENFILE: {
    meaning: 'the system has too many files open',
    causes: ['all processes together have reached the limit of the kernel'],
    next: ['end what is not needed', 'raise fs.file-max with sysctl'],
  },
  EMFILE: {
    meaning: 'this process has too many descriptors open',
    causes: ['each memfd is one descriptor here, and one in the process of the device', 'RLIMIT_NOFILE is low'],
    next: ['map fewer and larger pieces', 'raise the limit: "ulimit -n"'],
  },
  ENOTTY: {
    meaning: 'that request is not known to what it was sent to',
    causes: ['an ioctl for another kind of file, or for a newer kernel'],
    next: ['check that the path names the right device'],
  },
  EFBIG: {
    meaning: 'a file would become too large',
    causes: ['RLIMIT_FSIZE, or what its file system can hold'],
    next: ['raise the limit: "ulimit -f"', 'use less memory at once'],
  },
  ENOSPC: {
    meaning: 'no room: for one more mapping, for its IOVAs, or on a file system',
    causes: [
      'the domain takes no more mappings: its entry limit is reached',
      'its windows have no free range of that length, since others are mapped or were until a moment ago',
      'a device with few address bits, such as edu, has few IOVAs',
      'a server of RDMA has given its memory to other clients',
    ],
    next: [
      'map fewer and larger ranges',
      'unmap what is not needed',
      '"anydma devices --device NAME" shows the limits',
    ],
  },
  ESPIPE: {
    meaning: 'what has no positions was to be read or written at one',
    causes: ['a pipe or socket was given where a file is needed'],
    next: ['use a file or a memfd'],
  },
  EROFS: {
    meaning: 'the file system is read-only',
    causes: ['a file on it was to be opened for writing, or a socket to be made on it'],
    next: ["open the file for reading, and map it with access: 'read'", 'choose a path on another file system'],
  },
  EPIPE: {
    meaning: 'the other side does not listen any more',
    causes: ['the process at the other end of a connection has ended'],
    next: ['see why it ended, then connect again'],
  },
  ERANGE: {
    meaning: 'a number is outside of what can be used',
    causes: ['an IOVA outside of the windows of the domain', 'a 64-bit register whose value passes 2^53'],
    next: ['leave the IOVA out, and the domain chooses one', '"anydma devices --device NAME" shows the windows'],
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
    causes: ['links in the path point at each other'],
    next: ['check the path'],
  },
  EPROTO: {
    meaning: 'the other side broke the protocol',
    causes: [
      'what answers at the socket is no vfio-user server, or has a defect',
      'the device reported something impossible',
    ],
    next: ['check the path', 'the connection is closed: probe the device again'],
  },
  EOVERFLOW: {
    meaning: 'a value does not fit',
    causes: ['a size or an offset that the system can not represent'],
    next: ['use smaller ones'],
  },
  ENOTSOCK: {
    meaning: 'it is no socket',
    causes: ['a descriptor of another kind was used as a socket'],
    next: ['check the path or descriptor'],
  },
  EDESTADDRREQ: {
    meaning: 'a message has no address to go to',
    causes: ['a socket that is not connected'],
    next: ['connect it first'],
  },
  EMSGSIZE: {
    meaning: 'a message is too long',
    causes: ['more in one message than the other side takes', 'a message of RDMA is longer than the receive for it'],
    next: ['transfer less at once'],
  },
  ENOTSUP: {
    meaning: 'this machine, domain or device can not do that',
    causes: [
      'no system calls can be made here: not Linux, or koffi is missing',
      'a part of a mapping was to be unmapped, and the domain can only unmap all of it',
      'no driver takes the device, or it can not be mapped',
    ],
    next: ['"anydma devices" tells the platform and what it lacks', 'unmap whole mappings'],
  },
  EADDRINUSE: {
    meaning: 'somebody serves there already',
    causes: ['a server listens at that socket'],
    next: ['use that server, end it, or choose another path'],
  },
  ECONNABORTED: {
    meaning: 'this side ended the connection',
    causes: ['a call was not answered in time, so that the connection was given up', 'the server was stopped'],
    next: ['see why the other side was slow, then probe the device again'],
  },
  ECONNRESET: {
    meaning: 'the other side ended the connection',
    causes: ['the process that serves the device ended or crashed', 'the server has a client already, and serves one'],
    next: ['all mappings on it are gone: probe the device again once it is served', 'end the other client'],
  },
  ENOTCONN: {
    meaning: 'there is no connection',
    causes: ['the device was removed, or its client is gone'],
    next: ['probe the device again'],
  },
  ETIMEDOUT: {
    meaning: 'the other side did not answer in time',
    causes: [
      'the process of the device hangs, is stopped, or is very busy',
      'the device lost its interrupt or its work',
      'requests of RDMA were tried again as often as may be: the peer is gone, its queue pair has failed, or no network path leads there',
    ],
    next: [
      'see what it does',
      'give it more time, for connecting as well: vfio-user:PATH,timeout=MS',
      'see that both ports are active, and their GIDs in one network: "anydma devices"; UDP port 4791 must pass firewalls',
    ],
  },
  ECONNREFUSED: {
    meaning: 'nobody serves there',
    causes: [
      'the socket is there, but its server has ended',
      'what is there is a folder or a plain file, and no socket',
      'nobody listens at that TCP port',
    ],
    next: [
      'start the server again; a dead socket is replaced',
      'name the socket itself: vfio-user:FOLDER/cntrl for SPDK',
      'is "anydma rdma serve" running there, at that port?',
    ],
  },
  EALREADY: {
    meaning: 'that is under way already',
    causes: ['the same was asked for before, and has not ended'],
    next: ['wait for it'],
  },
  ECANCELED: {
    meaning: 'it was given up, and what it had done is undone',
    causes: [
      'an AbortSignal was aborted, or the command interrupted',
      'the device or its driver was closed meanwhile',
      'an earlier request of that queue pair of RDMA failed, and it does nothing more since',
    ],
    next: ['nothing, if you wanted that', 'see what failed first: queuePair.failure, or the cause of the error'],
  },
};
