/**
 * What the library needs from the operating system: one small interface per facility. `linux.ts` implements them
 * by system calls, `portable.ts` in plain JavaScript; `test/fakes/platform/` wraps either so that a test can make the
 * Nth call fail or check what was left behind.
 *
 * Every method either does what it says or throws a `DmaError` whose `operation` is the system call's name and whose
 * `code` is the kernel's errno; ENOTSUP, with the reason, if this machine can not do it. Descriptors are plain numbers,
 * owned by the caller until it closes them; every one created here is close-on-exec.
 */
import type { Va } from '../units.js';
import type { RdmaCmPort } from './rdma/rdma-cm-port.js';
import type { VerbsPort } from './rdma/verbs-port.js';

/** Options of a new mapping. */
export interface MmapOptions {
  /** bytes, a multiple of the page size */
  readonly length: number;
  /**
   * Do writes of the process reach the descriptor? Default true. Otherwise they stay in private pages (MAP_PRIVATE):
   * JavaScript can not make a view read-only, and a store to read-only memory would kill the process.
   */
  readonly writable?: boolean;
  /**
   * Shared and read-only: shows what others write to the descriptor, for memory that a device only reads. A store kills
   * the process, so no view of it may be handed out. Default false.
   */
  readonly readOnly?: boolean;
  /** The descriptor behind a shared mapping; absent for private anonymous memory. */
  readonly fd?: number;
  /** Bytes into the descriptor, a multiple of the page size. Default 0. */
  readonly offset?: number;
  /** Anonymous hugetlb memory of this page size in bytes, a power of two. */
  readonly hugePageSize?: number;
  /** Fault in every page now. Default false. */
  readonly populate?: boolean;
}

/** Options of a new memfd. */
export interface MemfdOptions {
  /** Appears in /proc/self/maps and /proc/self/fd. */
  readonly name: string;
  /** bytes */
  readonly length: number;
  /** hugetlb page size in bytes; ordinary pages when absent. */
  readonly hugePageSize?: number;
  /** Seal against shrinking and growing, so that SIGBUS can not kill a process that maps it. Default true. */
  readonly sealed?: boolean;
}

/** Options of memory that is committed to a part of a reservation. */
export interface CommitOptions {
  /** bytes, a multiple of the page size of what is mapped */
  readonly length: number;
  /** May the process write? Default true. */
  readonly writable?: boolean;
  /** The descriptor behind a shared mapping; absent for private anonymous memory, which a forked child does not inherit. */
  readonly fd?: number;
  /** Bytes into the descriptor, a multiple of its page size. Default 0. */
  readonly offset?: number;
  /** Anonymous hugetlb memory of this page size in bytes, a power of two. */
  readonly hugePageSize?: number;
}

/** Memory mappings, and JavaScript's views of them. */
export interface MemoryPort {
  /** page size in bytes of ordinary memory */
  readonly pageSize: number;
  /** mmap(2). Returns the address of the mapping, which the caller owns until `unmap`. */
  map(options: MmapOptions): Va;
  /**
   * munmap(2) of exactly one mapping of `map`, or of any part of one reservation; the rest of the reservation stays.
   * Detach every view first.
   */
  unmap(va: Va, length: number): void;
  /**
   * Frees the memory and leaves the addresses usable: fresh zeroed pages, allocated on first touch and not reserved
   * (mmap with MAP_FIXED, private, anonymous, MAP_NORESERVE), replace exactly one mapping of `map` or a part of a
   * reservation. The old pages go back to the system, hugepages too. A stale access neither faults nor reaches other
   * memory. `unmap` releases the addresses; in a reservation `decommit` makes them bare again. On failure the caller
   * still owns the addresses and can retry.
   */
  retire(va: Va, length: number): void;
  /**
   * Reserves addresses only: no page can be touched, and none counts against a limit (PROT_NONE, MAP_NORESERVE). The
   * caller owns them until `unmap`, which also frees all memory committed inside.
   *
   * @param length bytes, a multiple of the page size
   * @param alignment bytes, a power of two; below the page size it means the page size
   * @param low near 4 GiB, if there is space? Default false
   */
  reserve(length: number, alignment: number, low?: boolean): Va;
  /**
   * As `reserve`, at exactly these addresses, for memory that another process has there.
   *
   * @throws DmaError EEXIST if something of this process is there: `reason` says what; ENOMEM if the process may not have so many
   *   addresses; ENOTSUP in a worker thread, whose addresses end with it
   */
  reserveAt(va: Va, length: number): void;
  /**
   * Maps memory over a part of a reservation (mmap with MAP_FIXED). Its pages are not reserved (MAP_NORESERVE): do not
   * touch any before `populate`, because a missing hugepage would kill the process. On failure the part stays reserved.
   * EINVAL unless the part is inside one reservation of this port.
   */
  commit(va: Va, options: CommitOptions): void;
  /**
   * Faults in all pages of mapped memory and keeps their contents. ENOMEM if a page is not available; some pages may
   * then be present: give them back (and `punch` the file behind them).
   *
   * @param access default `write`. For `read`, pages that a file has are enough; holes of a tmpfs or hugetlbfs are
   * filled anyway.
   */
  populate(va: Va, length: number, access?: 'read' | 'write'): void;
  /** How many calls run on other threads at once: half of libuv's pool (UV_THREADPOOL_SIZE). */
  readonly lanes: number;
  /**
   * Like `populate`, on another thread, for any mapped memory. The range must stay mapped until it is done.
   *
   * @param access `read`: does not turn missing pages into private copies; for memory that must not be written
   * @throws DmaError also ENOTSUP before Linux 5.14
   */
  populateAsync(va: Va, length: number, access?: 'read' | 'write'): Promise<void>;
  /** On another thread: drops the pages of private memory, which stays mapped and reads as zero (MADV_DONTNEED). */
  dropAsync(va: Va, length: number): Promise<void>;
  /**
   * Makes a part of a reservation bare again. Private pages go back to the system; pages of a descriptor stay in it.
   * EINVAL unless the part is inside one reservation of this port. Detach every view first.
   */
  decommit(va: Va, length: number): void;
  /**
   * Restricts committed memory to pages of NUMA node `node` (mbind, MPOL_BIND). Call it before `populate`: existing
   * pages stay where they are. Does nothing if the system lacks the call, or refuses it to this process, and `node` is
   * the only node. EINVAL if the machine has no such node.
   */
  bind(va: Va, length: number, node: number): void;
  /** The NUMA node of each of `count` pages from `va` on (by move_pages, which moves nothing here); -1 if unknown. */
  nodesOf(va: Va, pageSize: number, count: number): Int32Array;
  /**
   * The physical address of each of `count` pages from `va` on, by /proc/self/pagemap; -1 for a page that is not
   * present. `undefined` if the kernel hides them (without CAP_SYS_ADMIN it shows zeros).
   */
  frames(va: Va, pageSize: number, count: number): Float64Array | undefined;
  /** mlock(2): the pages stay in memory until they are unmapped. ENOMEM or EPERM beyond RLIMIT_MEMLOCK. */
  lock(va: Va, length: number): void;
  /** memfd_create(2) + ftruncate(2) + seals. Returns a descriptor that the caller owns. */
  memfd(options: MemfdOptions): number;
  /**
   * The bytes at [va, va + length) as an ArrayBuffer that does not own them. The caller must `detach` it before the
   * memory is unmapped. ENOTSUP if longer than `maxView` bytes.
   */
  view(va: Va, length: number): ArrayBuffer;
  /** The largest `length` that `view` takes, in bytes (4 GiB on Node 20). */
  readonly maxView: number;
  /** Empties `buffer` and all views on it: later reads give undefined or throw and never fault. */
  detach(buffer: ArrayBuffer): void;
  /** The address of the first byte of `view`, valid while `view` is alive. EINVAL if it is detached or empty. */
  addressOf(view: ArrayBufferView | ArrayBufferLike): Va;
  /**
   * For memory that a worker thread mapped, and that is unmapped when the worker ends: the buffers that another thread
   * must hold while it uses the memory. They can be sent to it. `undefined` for all other memory.
   */
  keeper(va: Va): readonly SharedArrayBuffer[] | undefined;
  /**
   * 16 random bytes that the kernel gave this process when its program started: the same in all of its threads, others in every
   * other process. `undefined` where there are none.
   */
  secret(): Uint8Array | undefined;
  /**
   * Copies from mapped memory by a system call: a page that is gone (a hugepage removed from its file) is EFAULT, where
   * touching it would kill the process.
   */
  copyFrom(va: Va, into: Uint8Array): void;
  copyTo(va: Va, from: Uint8Array): void;
  /**
   * What access this process has to all of [va, va + length), by /proc/self/maps; `'none'` if any page is not mapped.
   */
  protection(va: Va, length: number): 'none' | 'read' | 'read-write';
}

/** Type, size and access mode of an open file. */
export interface FileStatus {
  readonly kind: 'file' | 'socket' | 'pipe' | 'directory' | 'device' | 'other';
  /** bytes; 0 if it has no length */
  readonly size: number;
  /** Was it opened for reading? */
  readonly readable: boolean;
  /** Was it opened for writing? */
  readonly writable: boolean;
  /** bytes of allocated storage; less than `size` if the file has holes */
  readonly allocated: number;
  /** page size in bytes; larger than the system's for hugetlbfs and hugetlb memfds */
  readonly pageSize: number;
  /** Number of hard links; 0 for memfds and removed files. */
  readonly links: number;
  /** User id of the owner. */
  readonly user: number;
  /** Permission bits, as of chmod(1). */
  readonly mode: number;
}

/**
 * A descriptor from another process, by its risk of blocking: `memory` (a memfd, or a file of tmpfs or hugetlbfs) and
 * `eventfd` never block; a `file` is on a local file system; `other` is unknown, and may block any call, even close.
 */
export type Foreign = 'memory' | 'file' | 'eventfd' | 'socket' | 'device' | 'other';

/** A mounted file system. */
export interface FileSystem {
  readonly kind: 'tmpfs' | 'hugetlbfs' | 'other';
  /** block size in bytes; for hugetlbfs, the page size */
  readonly blockSize: number;
  /**
   * Size and free space for this user, in bytes; both Infinity if it has no limit of its own (hugetlbfs and tmpfs
   * without `size=`).
   */
  readonly size: number;
  readonly left: number;
  /** How many files can still be created; Infinity if there is no limit. */
  readonly filesLeft: number;
}

/**
 * Reads and writes of files that the kernel gets together: few calls for many transfers. They are done when {@link FileBatch.run}
 * returns, so it is for files whose pages are in memory.
 */
export interface FileBatch {
  /** Most transfers that it holds. */
  readonly capacity: number;
  /** How many it holds. */
  readonly count: number;
  /** What came of each transfer of the last `run`: the bytes that were moved, or an errno as a negative number. */
  readonly results: Int32Array;
  /**
   * Adds a read. It holds less than `capacity`.
   *
   * @param va memory that stays mapped until `run` has returned
   * @param cached only if that needs no disk? Otherwise its result is EAGAIN, or EOPNOTSUPP where the file system can not tell
   */
  read(fd: number, offset: number, va: number, length: number, cached: boolean): void;
  /** Adds a write, as {@link FileBatch.read}. A file may become longer by it. */
  write(fd: number, offset: number, va: number, length: number): void;
  /** Carries all out, in any order, and is empty then. Never throws. */
  run(): void;
  /** Gives its context back. Idempotent. */
  close(): void;
}

/** Files and descriptors. */
export interface FilesPort {
  /**
   * open(2).
   *
   * @param options.follow follow a symbolic link at the end of `path`? Default true. Otherwise a link is ELOOP, and
   * opening a pipe or a device does not wait.
   * @param options.directory fail with ENOTDIR, at once, unless it is a directory? Default false.
   */
  open(
    path: string,
    access: 'read' | 'read-write',
    options?: { readonly follow?: boolean; readonly directory?: boolean },
  ): number;
  /**
   * Opens `path` for reading and writing; creates it if it does not exist, for this user only (mode 0600).
   *
   * @param options.exclusive EEXIST if it exists. Default false.
   */
  create(path: string, options?: { readonly exclusive?: boolean }): number;
  /** unlink(2). The file lives on as long as it is open or mapped. */
  remove(path: string): void;
  /** Does the open file still have a name (st_nlink)? False for memfds and removed files. */
  hasName(fd: number): boolean;
  /** ftruncate(2) to `length` bytes. */
  truncate(fd: number, length: number): void;
  /**
   * fallocate(2): allocates pages for [offset, offset + length). ENOSPC if there are not enough. Makes the file longer
   * if needed.
   */
  allocateRange(fd: number, offset: number, length: number): void;
  /** As `allocateRange`, on another thread. */
  allocateRangeAsync(fd: number, offset: number, length: number): Promise<void>;
  /**
   * Frees the pages of [offset, offset + length) of the file, which keeps its size (FALLOC_FL_PUNCH_HOLE). A seal
   * against shrinking allows it.
   */
  punch(fd: number, offset: number, length: number): void;
  /** As `punch`, on another thread. */
  punchAsync(fd: number, offset: number, length: number): Promise<void>;
  /**
   * flock(2) without waiting. The lock belongs to the open file: it ends when the last descriptor is closed or the last
   * process ends.
   *
   * @returns false if another lock conflicts
   */
  lock(fd: number, kind: 'shared' | 'exclusive'): boolean;
  close(fd: number): void;
  /** Classifies a descriptor from another process. Does not block. */
  foreign(fd: number): Foreign;
  /**
   * Closes a descriptor from another process. If closing may block (a file that a process serves), another thread closes
   * it, one at a time. Sockets do not linger over what they have not sent. Never throws.
   */
  closeForeign(fd: number): void;
  /** How many descriptors {@link FilesPort.closeForeign} has been given that are not closed yet. */
  closing(): number;
  /** A second descriptor for the same open file (F_DUPFD_CLOEXEC). */
  duplicate(fd: number): number;
  status(fd: number): FileStatus;
  /** fstatfs(2): the file system of the open file or directory. */
  fileSystem(fd: number): FileSystem;
  /**
   * Is it sealed against shrinking (F_SEAL_SHRINK)? With `add`, tries to add a missing seal. Does not throw for files
   * without seals.
   */
  sealedAgainstShrinking(fd: number, add: boolean): boolean;
  /** `undefined` where the kernel has no asynchronous I/O, a sandbox forbids it, or a limit is reached. */
  batch(): FileBatch | undefined;
  /** pread(2) into `into` until it is full or the file ends. Returns the bytes read. */
  readAt(fd: number, offset: number, into: Uint8Array): number;
  /**
   * pwrite(2) of all of `from`, but never past the end of a file. Returns the bytes written.
   *
   * @param end where the file ends, if the caller knows it, so that it is not asked each time
   */
  writeAt(fd: number, offset: number, from: Uint8Array, end?: number): number;
  /**
   * One read(2), for files without offsets such as the kernel's queues. Returns the bytes read, 0 if there are none.
   */
  read(fd: number, into: Uint8Array): number;
  /** One write(2), for files without offsets. Returns the bytes written. */
  write(fd: number, from: Uint8Array): number;
}

/** What one `receive` brought. */
export interface ReceivedBytes {
  /** Bytes put into the buffer; 0 at the end of the stream. */
  readonly bytes: number;
  /** Descriptors received; the receiver owns them. They belong to the last message that begins in these bytes. */
  readonly fds: readonly number[];
  /** More descriptors were sent than accepted; the rest is lost. */
  readonly truncated: boolean;
}

/** The process at the other end of a UNIX socket. */
export interface Peer {
  /** Process id; 0 if it is not in this process's namespace. */
  readonly pid: number;
  /** User id. */
  readonly user: number;
  /** Is it this process's user, or root? Then it could kill this process anyway. */
  readonly trusted: boolean;
}

/** UNIX stream sockets with SCM_RIGHTS. Every socket is non-blocking; "would block" is a value, not an error. */
export interface SocketsPort {
  /**
   * Connects to a listening socket. ENOENT, ECONNREFUSED, EACCES, ENAMETOOLONG (path of 108 bytes or more), EAGAIN
   * (queue full).
   */
  connect(path: string): number;
  /**
   * Listens at `path`, which appears only once connections are accepted (bind to another name, then rename). EADDRINUSE
   * if another server listens there; a dead socket file is replaced.
   */
  listen(path: string, backlog: number): number;
  /** Accepts the next waiting connection; `undefined` if there is none. */
  accept(fd: number): number | undefined;
  /** Two connected sockets. */
  pair(): [number, number];
  /**
   * sendmsg(2) of `bytes.subarray(offset)`, with descriptors on the first byte.
   * @returns bytes sent; 0 if it would block (then no descriptor was sent either)
   */
  send(fd: number, bytes: Uint8Array, offset: number, fds: readonly number[]): number;
  /** recvmsg(2) into `into`, with at most `maxFds` descriptors. `undefined` when it would block. */
  receive(fd: number, into: Uint8Array, maxFds: number): ReceivedBytes | undefined;
  /** Tells the other side that no more comes, either way. */
  shutdown(fd: number): void;
  /** The process that connected, or for a client the process that listens, at the time of connecting (SO_PEERCRED). */
  peer(fd: number): Peer;
  /**
   * A descriptor (pidfd) that becomes readable when the process of {@link SocketsPort.peer} ends; `'ended'` if it has
   * ended already; `undefined` if it is not in this process's namespace.
   */
  peerProcess(fd: number): number | 'ended' | undefined;
}

/** Event counters, by which devices signal interrupts to a program. */
export interface EventsPort {
  /** A new non-blocking eventfd(2) with count 0. */
  create(): number;
  /** Adds 1. EAGAIN if it would block. Only another process that clears O_NONBLOCK meanwhile can make it block. */
  signal(fd: number): void;
  /**
   * Adds 1 to an eventfd that another process can make blocking and full at any time. Never blocks, where the kernel has
   * asynchronous I/O. EINVAL if it is no eventfd.
   */
  signalForeign(fd: number): void;
  /** Returns the count and sets it to 0; 0 if nothing was signalled. Does not block. */
  take(fd: number): number;
}

/** A watch on a descriptor; closing it is idempotent and does not close the descriptor. */
export interface Watch {
  /** Does this watch keep the process alive? A new one does. */
  setRef(keepAlive: boolean): void;
  close(): void;
}

/** A descriptor to wait for. */
export interface Polled {
  readonly fd: number;
  readonly readable: boolean;
  readonly writable: boolean;
  ready?: boolean;
}

/** Readiness of raw descriptors. */
export interface ReadinessPort {
  /**
   * Calls `onReady` from the event loop whenever the descriptor is readable (or, with `writable`, writable).
   * Level-triggered: drain until it would block. EPERM for descriptors that can not be polled (files, memfds).
   */
  watch(fd: number, interest: { readable?: boolean; writable?: boolean }, onReady: () => void): Watch;
  /**
   * poll(2): blocks this thread until a descriptor is ready or the timeout ends.
   * @param fds if any is ready, each is told whether it is by `ready` (errors and hang-ups count as ready)
   * @param timeoutMs milliseconds; 0 does not wait
   * @returns whether any is ready
   */
  wait(fds: readonly Polled[], timeoutMs: number): boolean;
}

/** ioctl(2). */
export interface IoctlPort {
  /** Returns ioctl's non-negative result. `argument` is read and written; a number is passed by value. */
  call(fd: number, request: number, argument: Uint8Array | number, name: string): number;
  /** Like `call`, on another thread. Until it is done, do not use `argument` and do not close the descriptor. */
  callAsync(fd: number, request: number, argument: Uint8Array, name: string): Promise<number>;
}

/** How much memory is available. */
export interface MemoryRoom {
  /**
   * Bytes available before the kernel would kill a process, less a reserve for the process itself; Infinity if unknown.
   */
  readonly bytes: number;
  /** The tightest limit with its figures, as a clause. */
  readonly limit: string;
}

/** Limits of this process. */
export interface LimitsPort {
  /**
   * The soft limit of RLIMIT_MEMLOCK (Infinity if there is none) and the locked bytes (VmLck). Pages pinned by VFIO
   * containers count here, like those of mlock(2).
   */
  lockedMemory(): { readonly limit: number; readonly used: number };
  /**
   * Bytes pinned for devices without being locked (VmPin). RDMA drivers check this against the limit, apart from locked
   * bytes. iommufd adds to it too, but checks the sum of all processes of the user, which is not readable: at least
   * this value.
   */
  pinnedMemory(): number;
  /** The limit on mappings of this process (vm.max_map_count), and how many it has. Reads all of /proc/self/maps. */
  mappings(): { readonly limit: number; readonly used: number };
  /** The soft (`limit`) and hard (`most`) limit of RLIMIT_NOFILE, and how many descriptors are open. */
  descriptors(): { readonly limit: number; readonly most: number; readonly open: number };
  /**
   * How much ordinary memory is available: the least of the machine's (with swap), that of NUMA node `node` (-1 for
   * any), and what memory.max and memory.high of this process's control groups leave.
   */
  room(node: number): MemoryRoom;
  /**
   * Hugepages of `pageSize` bytes available now, by sysfs: those free and not reserved, and those that
   * nr_overcommit_hugepages still allows. `undefined` if the kernel does not support that size.
   */
  freeHugePages(pageSize: number): number | undefined;
  /** What the hugetlb limits of this process's control groups leave; Infinity if there are none. */
  hugePageRoom(pageSize: number): MemoryRoom;
}

/** Arguments of {@link KernelPort.mount}. */
export interface MountOptions {
  /** The device; any text for file systems without one. */
  readonly source: string;
  /** An existing directory. */
  readonly target: string;
  /** The file system, such as `hugetlbfs`. */
  readonly type: string;
  /** The file system's own options, such as `pagesize=2M`. */
  readonly options: string;
}

/**
 * The kernel's settings (files of /proc and /sys) and its mounts. If a path does not exist (ENOENT, ENOTDIR; ENODEV or
 * ENXIO if its device is gone), methods return `undefined` or as documented; all other errors (EMFILE, EACCES ...) are
 * thrown.
 */
export interface KernelPort {
  /** The text of a file; `undefined` if it does not exist. */
  readText(path: string): string | undefined;
  /** Replaces the contents of an existing file by `text`, in one write(2). Throws if the kernel refuses the value. */
  writeText(path: string, text: string): void;
  /** The names in a directory, in ascending order; none if it does not exist. */
  list(directory: string): string[];
  /** readlink(2): the target of a symbolic link, which may be relative; `undefined` if it does not exist. */
  readLink(path: string): string | undefined;
  /**
   * Do the permissions of `path` let this process open it for reading and writing? access(2), which opens nothing: a
   * device may still refuse (EBUSY, or EPERM by the device rules of a container).
   */
  mayOpen(path: string): 'yes' | 'no-such-file' | 'no-permission';
  /**
   * The kernel's log, oldest line first, with level and time as dmesg shows; `undefined` if the kernel hides it from
   * this process. Other errors are thrown.
   */
  log(): string | undefined;
  /** chown(2) with user and group ids; -1 leaves one unchanged. */
  changeOwner(path: string, user: number, group: number): void;
  /** realpath(3): the absolute path without symbolic links; `undefined` if it does not exist. */
  realPath(path: string): string | undefined;
  /**
   * Creates a directory and its parents; does nothing if it exists. ENOTDIR if a file is in the way.
   *
   * @param mode the permission bits of new directories. Default: those that the process's umask leaves
   */
  makeDirectory(path: string, mode?: number): void;
  /** mount(2). */
  mount(options: MountOptions): void;
  /** umount2(2). EBUSY while a file in it is open or mapped. */
  unmount(target: string): void;
  /** The device of a node, following links; `undefined` if `path` does not exist or is not a device node. */
  nodeAt(path: string): DeviceNode | undefined;
  /**
   * Opens a node exclusively, until the result is disposed of. A block device is opened with O_EXCL: nobody can mount
   * it, swap on it or add it to an array or volume. A character device must have a driver that allows only one opener
   * (VFIO's groups).
   *
   * @param node the device expected there, from `nodeAt`
   * @throws DmaError EBUSY if the device is in use; ENOENT if the node does not exist, or is another device
   */
  claim(path: string, node: DeviceNode): Disposable;
  /** All routes of this process's network namespace, of every table and both families (rtnetlink(7)). */
  routes(): KernelRoute[];
  /** The id of the user or group with this name; `undefined` if it does not exist. */
  idOf(kind: 'user' | 'group', name: string): number | undefined;
}

/** A node of /dev. */
export interface DeviceNode {
  readonly kind: 'block' | 'character';
  /** Device number as in sysfs: `259:0`. */
  readonly number: string;
}

/** A route of the kernel. */
export interface KernelRoute {
  readonly family: 4 | 6;
  /** 254 is the main table, 255 has the machine's own addresses; programs and VRFs use others. */
  readonly table: number;
  /** `local`: an address of this machine; `other`: multicast, unreachable and others without a destination. */
  readonly type: 'unicast' | 'local' | 'other';
  /** The destination prefix: `192.0.2.0/24`, `::/0` */
  readonly destination: string;
  /** Indexes of the interfaces that the route uses. */
  readonly interfaces: readonly number[];
}

/** All ports of one machine. */
export interface Platform {
  /** `linux`, or `portable` when no system call can be made */
  readonly name: string;
  /** Why system calls are not available; `undefined` if they are. */
  readonly limitation: string | undefined;
  readonly memory: MemoryPort;
  readonly files: FilesPort;
  readonly sockets: SocketsPort;
  readonly events: EventsPort;
  readonly readiness: ReadinessPort;
  readonly ioctl: IoctlPort;
  readonly limits: LimitsPort;
  readonly kernel: KernelPort;
  readonly verbs: VerbsPort;
  readonly rdmaCm: RdmaCmPort;
}
