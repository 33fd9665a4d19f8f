/** An interface of the kernel whose other end is this program: /dev/net/tun. */
import { invalid, isDmaError, undoAll, type ErrorCode } from '../../errors.js';
import type { Platform } from '../../platform/ports.js';
import {
  IFF_MULTI_QUEUE,
  IFF_NO_PI,
  IFF_TAP,
  IFF_UP,
  IFF_VNET_HDR,
  IFREQ,
  SIOCGIFFLAGS,
  SIOCGIFMTU,
  SIOCSIFMTU,
  TUNSETIFF,
} from '../../platform/uapi/tun.js';

const NODE = '/dev/net/tun';

/** What it needs of the platform. */
export type TapPlatform = Pick<Platform, 'files' | 'ioctl' | 'readiness' | 'sockets'>;

/** Which interface. */
export interface TapOptions {
  /** The kernel's name of it: made if it is not there, and gone when it is closed unless it was there. */
  readonly name: string;
  readonly queues: number;
  /** Bytes of a packet without its Ethernet header; `undefined` leaves it. */
  readonly mtu?: number;
}

/** An interface that is open: a descriptor for each queue. */
export class TapInterface implements Disposable {
  readonly name: string;
  readonly fds: readonly number[];
  readonly #platform: TapPlatform;
  /** A socket, for questions. */
  readonly #sockets: readonly number[];
  #closed = false;

  /**
   * Opens it.
   *
   * @throws DmaError EINVAL for an impossible name, or an interface of another kind; ENOENT, EACCES, EPERM, EBUSY, each with what helps
   */
  constructor(platform: TapPlatform, { name, queues, mtu }: TapOptions) {
    this.#platform = platform;
    this.name = name;
    if (!/^[^\s/:%]{1,15}$/.test(name) || name === '.' || name === '..')
      throw invalid('open', `an interface can not be called ${JSON.stringify(name)}`, {
        hint: 'names have 1 to 15 characters, no spaces, and none of / : %',
      });
    const { files, sockets } = platform;
    const fds: number[] = [];
    let pair: readonly number[] = [];
    try {
      for (let queue = 0; queue < queues; queue++) {
        fds.push(opened(platform));
        this.#join(fds[queue], queues > 1);
      }
      pair = sockets.pair();
      this.fds = fds;
      this.#sockets = pair;
      if (mtu !== undefined) this.#setMtu(mtu);
    } catch (error) {
      undoAll([...fds, ...pair].map((fd) => () => files.close(fd)));
      throw error;
    }
  }

  #join(fd: number, several: boolean): void {
    const request = this.#request();
    const flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (several ? IFF_MULTI_QUEUE : 0);
    new DataView(request.buffer).setUint16(IFREQ.ifr_flags, flags, true);
    try {
      this.#platform.ioctl.call(fd, TUNSETIFF, request, 'TUNSETIFF');
    } catch (error) {
      throw this.#refused(error, several);
    }
  }

  #request(): Uint8Array<ArrayBuffer> {
    const request = new Uint8Array(IFREQ.sizeof);
    new TextEncoder().encodeInto(this.name, request.subarray(0, IFREQ.names - 1));
    return request;
  }

  #refused(error: unknown, several: boolean): unknown {
    if (!isDmaError(error)) return error;
    const { name } = this;
    const hints: Partial<Record<ErrorCode, string>> = {
      EPERM:
        `making an interface takes CAP_NET_ADMIN; root can make it for you: ip tuntap add dev ${name} mode tap user $USER` +
        (several ? ' multi_queue' : ''),
      EBUSY: `another program has ${name}, or another process of this one: "ip -d link show ${name}" shows it; take another name by iface=NAME`,
      EINVAL: `there is an interface ${name} of another kind: "ip -d link show ${name}" shows it; take another name by iface=NAME${
        several ? ', or make it with multi_queue' : ''
      }`,
    };
    return error.with({
      operation: 'open',
      reason: `the interface ${name}: ${error.reason}`,
      hint: hints[error.code] ?? error.hint,
    });
  }

  /** Is it switched on (`ip link set up`)? False also when it is gone. */
  get isUp(): boolean {
    return ((this.#ask(SIOCGIFFLAGS, 'SIOCGIFFLAGS')?.getUint16(IFREQ.ifr_flags, true) ?? 0) & IFF_UP) !== 0;
  }

  /** Bytes of a packet without its Ethernet header; 0 when it is gone. */
  get mtu(): number {
    return this.#ask(SIOCGIFMTU, 'SIOCGIFMTU')?.getInt32(IFREQ.ifr_mtu, true) ?? 0;
  }

  #ask(request: number, name: string): DataView | undefined {
    if (this.#closed) return undefined;
    const about = this.#request();
    try {
      this.#platform.ioctl.call(this.#sockets[0], request, about, name);
      return new DataView(about.buffer);
    } catch {
      return undefined;
    }
  }

  #setMtu(mtu: number): void {
    const about = this.#request();
    new DataView(about.buffer).setInt32(IFREQ.ifr_mtu, mtu, true);
    try {
      this.#platform.ioctl.call(this.#sockets[0], SIOCSIFMTU, about, 'SIOCSIFMTU');
    } catch (error) {
      if (!isDmaError(error)) throw error;
      throw error.with({
        operation: 'open',
        reason: `the MTU of ${this.name} can not be ${mtu}: ${error.reason}`,
        hint:
          error.code === 'EPERM'
            ? 'that takes CAP_NET_ADMIN: leave mtu out, and set it as root: ip link set mtu'
            : error.hint,
      });
    }
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    undoAll([...this.fds, ...this.#sockets].map((fd) => () => this.#platform.files.close(fd)));
  }
}

function opened({ files }: TapPlatform): number {
  try {
    // Without following links it does not wait, either.
    return files.open(NODE, 'read-write', { follow: false });
  } catch (error) {
    if (!isDmaError(error)) throw error;
    const isMissing = error.code === 'ENOENT' || error.code === 'ENODEV' || error.code === 'ENXIO';
    throw error.with({
      hint: isMissing
        ? `load the kernel's module as root: modprobe tun. A container gets the node by --device ${NODE}`
        : error.code === 'EACCES' || error.code === 'EPERM'
          ? `${NODE} lets this user not open it: chmod 0666 ${NODE}, as usual, or the device rules of a container`
          : error.hint,
    });
  }
}
