/**
 * What the library asks of the operating system: one small interface a facility. `linux.ts` answers with real system
 * calls, `portable.ts` with what plain JavaScript can do, `test/fakes/platform/` wraps either so that a test can make the Nth call
 * fail or see what was left behind.
 *
 * Every method either does what it says or throws a `DmaError` whose `operation` is the system call's name and whose
 * `code` is the kernel's errno; what this machine can not do is ENOTSUP, with the reason. Descriptors are plain numbers,
 * owned by the caller until it closes them; every one that is made here has close-on-exec set.
 */
import type { Va } from '../units.js';
import type { RdmaCmPort } from './rdma/rdma-cm-port.js';
import type { VerbsPort } from './rdma/verbs-port.js';

/** How a new mapping gets its pages. */
export interface MmapOptions {
  /** bytes, a multiple of the page size */
  readonly length: number;
  /**
   * Does what the process writes reach the descriptor? Default true. Otherwise it stays in pages of the process's own
   * (MAP_PRIVATE): JavaScript can not make a view read-only, and a store to read-only memory would kill the process.
   */
  readonly writable?: boolean;
  /**
   * For reading only, and what others write to the descriptor is seen: what a device may read. A store ends the process, so no
   * view of it may be handed out. Default false.
   */
  readonly readOnly?: boolean;
  /** The descriptor behind a shared mapping; absent for private anonymous memory. */
  readonly fd?: number;
  /** Bytes into the descriptor, a multiple of the page size. Default 0. */
  readonly offset?: number;
  /** Anonymous hugetlb memory of this page size in bytes, a power of two. */
  readonly hugePageSize?: number;
  /** Fault every page in now. */
  readonly populate?: boolean;
}

/** Options of a new memfd. */
export interface MemfdOptions {
  /** Shows up in /proc/self/maps and /proc/self/fd. */
  readonly name: string;
  /** bytes */
  readonly length: number;
  /** hugetlb page size in bytes; ordinary pages when absent. */
  readonly hugePageSize?: number;
  /** Seal against shrinking and growing, so that nobody who maps it can be killed by SIGBUS. Default true. */
  readonly sealed?: boolean;
}

/** What a part of a reservation becomes. */
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
  /** bytes a page of ordinary memory has */
  readonly pageSize: number;
  /** mmap(2). Returns the address of the mapping, which the caller owns until `unmap`. */
  map(options: MmapOptions): Va;
  /**
   * munmap(2) of exactly what `map` returned, or of any part of one reservation, which goes on without it. Every view must
   * have been detached before.
   */
  unmap(va: Va, length: number): void;
  /**
   * Takes the memory away and leaves the addresses usable: fresh zeroed pages that are there once they are touched, and
   * promised by nobody (mmap with MAP_FIXED, private, anonymous, MAP_NORESERVE), take the place of exactly what `map`
   * returned or of a part of a reservation. The pages that were there go back to the system, hugepages too. Who still
   * reaches the addresses neither faults nor meets anybody. `unmap` gives the addresses back; in a reservation `decommit`
   * makes them bare again. When it fails, the addresses are still the caller's, and it can be tried again.
   */
  retire(va: Va, length: number): void;
  /**
   * Reserves addresses and nothing else: no page can be touched, none is counted (PROT_NONE, MAP_NORESERVE). The caller
   * owns them until `unmap`, which also takes all that was committed inside.
   *
   * @param length bytes, a multiple of the page size
   * @param alignment bytes, a power of two; below the page size it means the page size
   * @param low near 4 GiB, if there is room? Default false
   */
  reserve(length: number, alignment: number, low?: boolean): Va;
  /**
   * Maps memory over a part of a reservation (mmap with MAP_FIXED). Its pages are promised by nobody (MAP_NORESERVE): touch
   * none before `populate`, because a missing hugepage would kill the process. When it fails the part is reserved as
   * before. EINVAL unless the part is inside one reservation of this port.
   */
  commit(va: Va, options: CommitOptions): void;
  /**
   * Faults in all pages of mapped memory, and keeps what is in them. ENOMEM when a page can not be had, and then some may be
   * there and others not: give them back (and `punch` the file behind them).
   *
   * @param access what for. Default `write`. To `read`, pages that a file has are enough; holes of a tmpfs or hugetlbfs are
   *   filled all the same.
   */
  populate(va: Va, length: number, access?: 'read' | 'write'): void;
  /** How many calls of this library are made on other threads at once: half of libuv's pool (UV_THREADPOOL_SIZE). */
  readonly lanes: number;
  /**
   * As `populate`, on another thread, of any memory that is mapped: the address range has to stay mapped until it is done.
   *
   * @param access `read`: what is missing is not made this process's own; for memory that is not to be written
   * @throws DmaError also ENOTSUP where the kernel can not do it (Linux before 5.14)
   */
  populateAsync(va: Va, length: number, access?: 'read' | 'write'): Promise<void>;
  /** On another thread: takes the pages out of private memory, which stays mapped and is zero then (MADV_DONTNEED). */
  dropAsync(va: Va, length: number): Promise<void>;
  /**
   * Makes a part of a reservation a bare reservation again. Private pages go back to the system; those of a descriptor stay
   * in it. EINVAL unless the part is inside one reservation of this port. Every view must have been detached before.
   */
  decommit(va: Va, length: number): void;
  /**
   * Lets the pages of committed memory come from NUMA node `node` only (mbind, MPOL_BIND). Call it before `populate`: pages
   * that are there stay where they are. Does nothing where the system has no such call, or refuses it to this process, and
   * `node` is the only node there is. EINVAL when the machine has no such node.
   */
  bind(va: Va, length: number, node: number): void;
  /** The NUMA node of each of `count` pages from `va` on (move_pages, which moves none here); -1 where it is not known. */
  nodesOf(va: Va, pageSize: number, count: number): Int32Array;
  /**
   * The physical address of each of `count` pages from `va` on, by /proc/self/pagemap; -1 for a page that is not there.
   * `undefined` when the kernel does not tell this process (without CAP_SYS_ADMIN it shows zeros).
   */
  frames(va: Va, pageSize: number, count: number): Float64Array | undefined;
  /** mlock(2): the pages stay in memory until they are unmapped. ENOMEM or EPERM beyond RLIMIT_MEMLOCK. */
  lock(va: Va, length: number): void;
  /** memfd_create(2) + ftruncate(2) + seals. Returns a descriptor that the caller owns. */
  memfd(options: MemfdOptions): number;
  /**
   * The bytes at [va, va + length) as an ArrayBuffer that does not own them. The caller must `detach` it before the memory
   * goes away. Longer than `maxView` bytes is ENOTSUP.
   */
  view(va: Va, length: number): ArrayBuffer;
  /** The largest `length` that `view` takes, in bytes (4 GiB on Node 20). */
  readonly maxView: number;
  /** Makes `buffer`, and all made on it, empty: later reads give undefined or throw and never fault. */
  detach(buffer: ArrayBuffer): void;
  /** Where the first byte of `view` is. EINVAL for a detached or empty one. The address stays good while `view` is alive. */
  addressOf(view: ArrayBufferView | ArrayBufferLike): Va;
  /**
   * For memory that was mapped in a worker thread, which is unmapped when that ends, in whatever way: what another thread
   * has to hold for as long as it uses the memory. It can be sent there. `undefined` for all other memory.
   */
  keeper(va: Va): readonly SharedArrayBuffer[] | undefined;
  /**
   * Copies between mapped memory and a buffer by a system call: a page that is not there any more (a hugepage that was taken out
   * of its file) is EFAULT, where touching it would end the process.
   */
  copyFrom(va: Va, into: Uint8Array): void;
  copyTo(va: Va, from: Uint8Array): void;
  /** What this process may do with all of [va, va + length), by /proc/self/maps; `'none'` when any page is not mapped. */
  protection(va: Va, length: number): 'none' | 'read' | 'read-write';
}

/** What kind of thing a descriptor is, and how long. */
export interface FileStatus {
  readonly kind: 'file' | 'socket' | 'pipe' | 'directory' | 'device' | 'other';
  /** bytes; 0 for what has no length */
  readonly size: number;
  /** May it be read through this descriptor? */
  readonly readable: boolean;
  /** May it be written through it? */
  readonly writable: boolean;
  /** bytes that the file has storage for; less than `size` when it has holes */
  readonly allocated: number;
  /** bytes of one of its pages, by its file system: more than the system's page size for hugetlbfs and hugetlb memfds */
  readonly pageSize: number;
  /** How many names lead to it; 0 for memfds and files that were removed. */
  readonly links: number;
  /** Number of the user who owns it. */
  readonly user: number;
  /** Permission bits, as of chmod(1). */
  readonly mode: number;
}

/**
 * A descriptor of another process, by what it can do to this one: `memory` (a memfd, or a file of tmpfs or hugetlbfs) and
 * `eventfd` never block; a `file` is one of a local file system; of `other` nothing is known, and it may block whoever touches
 * it, even to close it.
 */
export type Foreign = 'memory' | 'file' | 'eventfd' | 'socket' | 'device' | 'other';

/** A mounted file system. */
export interface FileSystem {
  readonly kind: 'tmpfs' | 'hugetlbfs' | 'other';
  /** bytes of a block; for hugetlbfs, of a page */
  readonly blockSize: number;
  /** Bytes it may hold, and bytes left of them for this user; both Infinity where it has no limit of its own (hugetlbfs and tmpfs without `size=`). */
  readonly size: number;
  readonly left: number;
  /** Files that can still be made; Infinity where it has no limit. */
  readonly filesLeft: number;
}

/** Files and descriptors. */
export interface FilesPort {
  /**
   * open(2).
   *
   * @param options.follow go where a symbolic link at the end of `path` leads? Default true. Otherwise a link is ELOOP, and
   *   what is no file (a pipe, a device) is opened without waiting for anybody.
   */
  open(path: string, access: 'read' | 'read-write', options?: { readonly follow?: boolean }): number;
  /**
   * Opens `path` for reading and writing and makes it when it is not there, for this user alone (mode 0600).
   *
   * @param options.exclusive EEXIST when it is there. Default false.
   */
  create(path: string, options?: { readonly exclusive?: boolean }): number;
  /** unlink(2). The file itself lives on as long as anybody has it open or mapped. */
  remove(path: string): void;
  /** Does any name still lead to the open file (st_nlink)? False for memfds, and for files that were removed. */
  hasName(fd: number): boolean;
  /** ftruncate(2) to `length` bytes. */
  truncate(fd: number, length: number): void;
  /** fallocate(2): puts pages under [offset, offset + length). ENOSPC when there are not enough. Makes the file longer if needed. */
  allocateRange(fd: number, offset: number, length: number): void;
  /** As `allocateRange`, on another thread. */
  allocateRangeAsync(fd: number, offset: number, length: number): Promise<void>;
  /** Takes the pages under [offset, offset + length) out of the file, which keeps its size (FALLOC_FL_PUNCH_HOLE). Seals against shrinking allow it. */
  punch(fd: number, offset: number, length: number): void;
  /** As `punch`, on another thread. */
  punchAsync(fd: number, offset: number, length: number): Promise<void>;
  /**
   * flock(2) without waiting: the lock belongs to the open file, so that it ends when its last descriptor is closed or its
   * last process dies.
   *
   * @returns false when somebody else's lock is in the way
   */
  lock(fd: number, kind: 'shared' | 'exclusive'): boolean;
  close(fd: number): void;
  /** What a descriptor that came from another process is. Waits for nobody. */
  foreign(fd: number): Foreign;
  /**
   * Closes a descriptor that came from another process, or a socket through which some may have come. What can block then (a
   * socket that lingers, a file of a file system that a process serves) is closed on another thread. Never throws.
   */
  closeForeign(fd: number): void;
  /** A second descriptor for the same open file (F_DUPFD_CLOEXEC). */
  duplicate(fd: number): number;
  status(fd: number): FileStatus;
  /** fstatfs(2): the file system that the open file or directory is on. */
  fileSystem(fd: number): FileSystem;
  /** Is it sealed against shrinking (F_SEAL_SHRINK)? With `add`, tries to add that seal when it is not. Never throws for want of seals. */
  sealedAgainstShrinking(fd: number, add: boolean): boolean;
  /** pread(2) into `into` until it is full or the file ends. Returns the bytes read. */
  readAt(fd: number, offset: number, into: Uint8Array): number;
  /** pwrite(2) of all of `from`, without ever making a file longer. Returns the bytes written. */
  writeAt(fd: number, offset: number, from: Uint8Array): number;
  /** One read(2), of what has no offsets: a queue of the kernel's. Returns the bytes read, 0 when there are none. */
  read(fd: number, into: Uint8Array): number;
  /** One write(2), to what has no offsets. Returns the bytes written. */
  write(fd: number, from: Uint8Array): number;
}

/** What one `receive` brought. */
export interface ReceivedBytes {
  /** Bytes put into the buffer; 0 at the end of the stream. */
  readonly bytes: number;
  /** Descriptors that came along; the receiver owns them. They belong to the last message that begins in these bytes. */
  readonly fds: readonly number[];
  /** More descriptors were sent than were taken; the rest is lost. */
  readonly truncated: boolean;
}

/** The process at the other end of a UNIX socket. */
export interface Peer {
  /** 0 for one that this process's namespace does not have. */
  readonly pid: number;
  /** Number of its user. */
  readonly user: number;
  /** Is that this process's user, or root? Then it could end this process by a signal anyway. */
  readonly trusted: boolean;
}

/** UNIX stream sockets with SCM_RIGHTS. Every socket is non-blocking; "would block" is a value, not an error. */
export interface SocketsPort {
  /** Connects to a listening socket. ENOENT, ECONNREFUSED, EACCES, ENAMETOOLONG (paths of 108 bytes and more), EAGAIN (its queue is full). */
  connect(path: string): number;
  /**
   * Listens at `path`, which appears only once connections are accepted (bind under another name, then rename).
   * EADDRINUSE when somebody listens there already; a dead socket file is replaced.
   */
  listen(path: string, backlog: number): number;
  /** The next waiting connection, or `undefined` when there is none. */
  accept(fd: number): number | undefined;
  /** Two connected sockets. */
  pair(): [number, number];
  /**
   * sendmsg(2) of `bytes.subarray(offset)`, descriptors on the first byte.
   * @returns bytes taken by the kernel, 0 when it would block (then no descriptor went either)
   */
  send(fd: number, bytes: Uint8Array, offset: number, fds: readonly number[]): number;
  /** recvmsg(2) into `into`, with at most `maxFds` descriptors. `undefined` when it would block. */
  receive(fd: number, into: Uint8Array, maxFds: number): ReceivedBytes | undefined;
  /** Tells the other side that no more comes, either way. */
  shutdown(fd: number): void;
  /** Who connected, or, for who connected, who listens: as it was then (SO_PEERCRED). */
  peer(fd: number): Peer;
  /**
   * A descriptor that is readable once the process of {@link SocketsPort.peer} has ended (a pidfd); `undefined` when it has ended
   * already, or when its number says nothing here.
   */
  peerProcess(fd: number): number | 'ended' | undefined;
}

/** Event counters: how devices interrupt a program. */
export interface EventsPort {
  /** A new non-blocking eventfd(2) with count 0. */
  create(): number;
  /** Adds 1. EAGAIN when that would block, which is said without blocking. */
  signal(fd: number): void;
  /** Takes the count and sets it to 0. Returns 0 when nothing was signalled. Does not block. */
  take(fd: number): number;
}

/** A watch on a descriptor; closing it is idempotent and does not close the descriptor. */
export interface Watch {
  /** Should this watch keep the process alive? A new one does. */
  setRef(keepAlive: boolean): void;
  close(): void;
}

/** One descriptor that is waited for. */
export interface Polled {
  readonly fd: number;
  readonly readable: boolean;
  readonly writable: boolean;
  ready?: boolean;
}

/** Readiness of raw descriptors. */
export interface ReadinessPort {
  /**
   * Calls `onReady` from the event loop whenever the descriptor is readable (or, with `writable`, can be written). Level
   * triggered: drain until it would block. EPERM for what can not be polled (files, memfds).
   */
  watch(fd: number, interest: { readable?: boolean; writable?: boolean }, onReady: () => void): Watch;
  /**
   * poll(2): blocks this thread until one is ready or the time is over.
   * @param fds each is told by `ready` whether it is (errors and hang-ups count as ready), when any is
   * @param timeoutMs milliseconds; 0 only looks
   * @returns whether any is ready
   */
  wait(fds: readonly Polled[], timeoutMs: number): boolean;
}

/** ioctl(2). */
export interface IoctlPort {
  /** Returns ioctl's non-negative result. `argument` is in and out; a number is passed by value. */
  call(fd: number, request: number, argument: Uint8Array | number, name: string): number;
  /** As `call`, on another thread. `argument` is the call's own until it is done, and so is the descriptor: do not close it. */
  callAsync(fd: number, request: number, argument: Uint8Array, name: string): Promise<number>;
}

/** How much ordinary memory there is room for. */
export interface MemoryRoom {
  /** Bytes that can still be taken before the kernel would have to end a process, less a little that the process itself needs; Infinity where nobody tells. */
  readonly bytes: number;
  /** The figures of the limit that is next, in a clause. */
  readonly limit: string;
}

/** Limits of this process. */
export interface LimitsPort {
  /**
   * RLIMIT_MEMLOCK's soft limit and what is locked now (VmLck), in bytes; `limit` is Infinity when there is none. Pages that
   * VFIO's containers pin count here, as those of mlock(2) do.
   */
  lockedMemory(): { readonly limit: number; readonly used: number };
  /**
   * Bytes that are pinned for devices without being locked (VmPin). RDMA drivers hold this against the limit, apart from
   * what is locked; iommufd counts here too, but holds against the limit what all processes of the user have, which nobody
   * tells: it is no less than this.
   */
  pinnedMemory(): number;
  /** How many mappings the kernel lets this process have (vm.max_map_count), and how many it has. Reads all of them. */
  mappings(): { readonly limit: number; readonly used: number };
  /** RLIMIT_NOFILE's soft (`limit`) and hard (`most`) limit, and how many descriptors are open. */
  descriptors(): { readonly limit: number; readonly most: number; readonly open: number };
  /**
   * How much ordinary memory can be had: the least of what the machine has (swap included), what NUMA node `node` has (-1 for
   * any), and what is left of memory.max and memory.high of the control groups that this process is in.
   */
  room(node: number): MemoryRoom;
  /**
   * Hugepages of `pageSize` bytes that can be had now, by sysfs: those that are free and not promised, and those that
   * nr_overcommit_hugepages allows beyond. `undefined` when the kernel has none of that size.
   */
  freeHugePages(pageSize: number): number | undefined;
  /** What is left of the hugetlb limits of the control groups that this process is in; Infinity where there are none. */
  hugePageRoom(pageSize: number): MemoryRoom;
}

/** What is mounted by {@link KernelPort.mount}. */
export interface MountOptions {
  /** The device; any text for file systems that have none. */
  readonly source: string;
  /** An existing directory. */
  readonly target: string;
  /** The file system, such as `hugetlbfs`. */
  readonly type: string;
  /** The file system's own options, such as `pagesize=2M`. */
  readonly options: string;
}

/**
 * The kernel's settings, which are files of /proc and /sys, and its mounts. "Is not there" (ENOENT, ENOTDIR, and ENODEV or
 * ENXIO of what has nothing behind it) is an answer; whatever else keeps it from being asked (EMFILE, EACCES ...) is thrown.
 */
export interface KernelPort {
  /** The text of a file; `undefined` when it is not there. */
  readText(path: string): string | undefined;
  /** Puts `text` into a file that is there, in place of what is in it, by one write(2). The kernel's refusal of the value is thrown. */
  writeText(path: string, text: string): void;
  /** The names in a directory, in ascending order; none when it is not there. */
  list(directory: string): string[];
  /** readlink(2): what the symbolic link says, which may be relative to where it is; `undefined` when it is not there. */
  readLink(path: string): string | undefined;
  /**
   * Do the permissions of `path` let this process open it for reading and writing? access(2), which opens nothing: a device
   * may still refuse (EBUSY, or EPERM by the device rules of a container).
   */
  mayOpen(path: string): 'yes' | 'no-such-file' | 'no-permission';
  /** The kernel's log as it is now, oldest line first, lines with their level and time as dmesg shows; `undefined` when the kernel does not show it to this process; what else is in the way is thrown. */
  log(): string | undefined;
  /** chown(2) by the numbers of a user and a group, of which -1 stays as it is. */
  changeOwner(path: string, user: number, group: number): void;
  /** realpath(3): the absolute path without symbolic links; `undefined` when it leads nowhere. */
  realPath(path: string): string | undefined;
  /** Makes a directory and those above it; nothing happens when it is there. ENOTDIR when a file is there. */
  makeDirectory(path: string): void;
  /** mount(2). */
  mount(options: MountOptions): void;
  /** umount2(2). EBUSY while a file in it is open or mapped. */
  unmount(target: string): void;
  /** Which device a node is, links followed; `undefined` when `path` is not there or is no node of a device. */
  nodeAt(path: string): DeviceNode | undefined;
  /**
   * Opens a node that only one can have: a block device (O_EXCL), so that until the claim is disposed of nobody can mount it,
   * swap on it, or make it a part of an array or of a volume; or a character device whose driver is like that (VFIO's groups).
   *
   * @param node what has to be there, as `nodeAt` tells it
   * @throws DmaError EBUSY when somebody has it; ENOENT when there is no such node, or it is another device
   */
  claim(path: string, node: DeviceNode): Disposable;
  /** All routes of this process's network namespace, of every table and both families (rtnetlink(7)). */
  routes(): KernelRoute[];
  /** The number of a user or a group with this name, as the system's own programs look it up; `undefined` when there is none. */
  idOf(kind: 'user' | 'group', name: string): number | undefined;
}

/** A node of /dev. */
export interface DeviceNode {
  readonly kind: 'block' | 'character';
  /** Its number as sysfs writes it: `259:0`. */
  readonly number: string;
}

/** A route that the kernel has. */
export interface KernelRoute {
  readonly family: 4 | 6;
  /** 254 is the main one, 255 has the addresses of this machine; programs and VRFs have others. */
  readonly table: number;
  /** `local`: an address of this machine's own; `other`: multicast, unreachable and such, which lead nowhere. */
  readonly type: 'unicast' | 'local' | 'other';
  /** Where it leads: `192.0.2.0/24`, `::/0` */
  readonly destination: string;
  /** Indexes of the interfaces that it leads through. */
  readonly interfaces: readonly number[];
}

/** All ports of one machine. */
export interface Platform {
  /** `linux`, or `portable` when no system call can be made */
  readonly name: string;
  /** Why system calls can not be made here; `undefined` where they can. */
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
