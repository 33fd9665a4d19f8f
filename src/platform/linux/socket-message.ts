/**
 * sendmsg(2) and recvmsg(2) with descriptors, on Linux: the hot path of the vfio-user protocol. The arguments to the kernel
 * are laid out once, and only what is returned is allocated.
 */
import { ERRNO, invalid } from '../../errors.js';
import { checkFd, fail } from './libc.js';
import type { Libc } from './libc.js';
import type { ReceivedBytes } from '../ports.js';
import {
  CMSGHDR,
  IOVEC,
  MOST_FDS,
  MSG_CMSG_CLOEXEC,
  MSG_CTRUNC,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  MSGHDR,
  SCM_RIGHTS,
  SOL_SOCKET,
} from '../uapi/socket.js';

const NO_FDS: readonly number[] = Object.freeze<number[]>([]);

/** Offset of the iovec in the memory of the message, in bytes. */
const VECTOR_AT = 64;
const CONTROL_AT = 80;
const FDS_AT = CONTROL_AT + CMSGHDR.sizeof;

/** A msghdr with its one iovec and its control data, reused for every sendmsg and recvmsg. */
export class SocketMessage {
  readonly #libc: Libc;
  readonly #words = new Uint32Array((FDS_AT + MOST_FDS * 4 + 4) / 4);
  readonly #address: number;
  /** The address of each array: a lookup is faster than asking koffi, which creates a BigInt. */
  readonly #addresses = new WeakMap<Uint8Array, number>();

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#address = libc.addressOf(this.#words);
    this.#set64(MSGHDR.msg_iov, this.#address + VECTOR_AT);
    this.#set64(MSGHDR.msg_iovlen, 1);
  }

  send(fd: number, bytes: Uint8Array, offset: number, fds: readonly number[]): number {
    checkFd(fd, 'sendmsg');
    const length = bytes.byteLength - offset;
    // An empty message is refused: the kernel would send neither a byte nor a descriptor, and 0 means "would block"
    // here.
    if (!(length > 0) || !(offset >= 0) || !Number.isInteger(offset))
      throw invalid('sendmsg', `can not send from offset ${offset} of ${bytes.byteLength} bytes`);
    if (fds.length > MOST_FDS)
      throw invalid('sendmsg', `${fds.length} descriptors in one message, the kernel takes at most ${MOST_FDS}`);
    this.#setBuffer(bytes, offset, length);
    if (fds.length === 0) this.#setControl(0);
    else {
      this.#setControl(CMSGHDR.sizeof + fds.length * 4);
      const words = this.#words;
      words[(CONTROL_AT + CMSGHDR.cmsg_len) / 4] = CMSGHDR.sizeof + fds.length * 4;
      words[(CONTROL_AT + CMSGHDR.cmsg_len) / 4 + 1] = 0;
      words[(CONTROL_AT + CMSGHDR.cmsg_level) / 4] = SOL_SOCKET;
      words[(CONTROL_AT + CMSGHDR.cmsg_type) / 4] = SCM_RIGHTS;
      for (let i = 0; i < fds.length; i++) {
        checkFd(fds[i], 'sendmsg');
        words[FDS_AT / 4 + i] = fds[i];
      }
    }
    for (;;) {
      const sent = this.#libc.sendmsg(fd, this.#address, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent !== -1) return sent;
      const errno = this.#libc.errno();
      if (errno === ERRNO.EAGAIN) return 0;
      if (errno !== ERRNO.EINTR) fail(errno, 'sendmsg', `fd ${fd}`);
    }
  }

  receive(fd: number, into: Uint8Array, maxFds: number): ReceivedBytes | undefined {
    checkFd(fd, 'recvmsg');
    if (into.byteLength === 0) throw invalid('recvmsg', 'the receive buffer is empty or detached');
    if (!(maxFds >= 0 && maxFds <= MOST_FDS))
      throw invalid('recvmsg', `${maxFds} descriptors: 0 to ${MOST_FDS} are possible`);
    this.#setBuffer(into, 0, into.byteLength);
    // Exactly the space needed: the kernel would put another descriptor into padding.
    this.#setControl(maxFds === 0 ? 0 : CMSGHDR.sizeof + maxFds * 4);
    for (;;) {
      const bytes = this.#libc.recvmsg(fd, this.#address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
      if (bytes !== -1) return this.#received(bytes);
      const errno = this.#libc.errno();
      if (errno === ERRNO.EAGAIN) return undefined;
      if (errno !== ERRNO.EINTR) fail(errno, 'recvmsg', `fd ${fd}`);
    }
  }

  #received(bytes: number): ReceivedBytes {
    const truncated = this.#isTruncated();
    const came = this.#fds();
    if (came === NO_FDS) return { bytes, fds: NO_FDS, truncated };
    const fds = came.map((each) => this.#libc.own(each)).filter((each) => each !== -1);
    return { bytes, fds, truncated: truncated || fds.length < came.length };
  }

  #setBuffer(bytes: Uint8Array, offset: number, length: number): void {
    let address = this.#addresses.get(bytes);
    if (address === undefined) this.#addresses.set(bytes, (address = this.#libc.addressOf(bytes)));
    this.#set64(VECTOR_AT + IOVEC.iov_base, address + offset);
    this.#set64(VECTOR_AT + IOVEC.iov_len, length);
  }

  #setControl(length: number): void {
    this.#set64(MSGHDR.msg_control, length === 0 ? 0 : this.#address + CONTROL_AT);
    this.#words[MSGHDR.msg_controllen / 4] = length;
    this.#words[MSGHDR.msg_flags / 4] = 0;
  }

  /** The descriptors in the control data of recvmsg. Only SCM_RIGHTS is ever enabled. */
  #fds(): readonly number[] {
    const words = this.#words;
    if (words[MSGHDR.msg_controllen / 4] < CMSGHDR.sizeof) return NO_FDS;
    const end = (CONTROL_AT + words[(CONTROL_AT + CMSGHDR.cmsg_len) / 4]) / 4;
    const isRights =
      words[(CONTROL_AT + CMSGHDR.cmsg_level) / 4] === SOL_SOCKET &&
      words[(CONTROL_AT + CMSGHDR.cmsg_type) / 4] === SCM_RIGHTS;
    return isRights ? Array.from(words.subarray(FDS_AT / 4, end)) : NO_FDS;
  }

  #isTruncated(): boolean {
    return (this.#words[MSGHDR.msg_flags / 4] & MSG_CTRUNC) !== 0;
  }

  #set64(at: number, value: number): void {
    this.#words[at / 4] = value >>> 0;
    this.#words[at / 4 + 1] = value / 2 ** 32;
  }
}
