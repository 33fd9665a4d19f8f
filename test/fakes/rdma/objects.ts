/** For tests: what is open on the devices of an emulated fabric. See fabric.ts. */
import type { Watch } from '../../../src/platform/ports.js';
import type {
  VerbsAh,
  VerbsAsyncEvent,
  VerbsChannel,
  VerbsContext,
  VerbsCq,
  VerbsDevice,
  VerbsDeviceAttributes,
  VerbsMr,
  VerbsMw,
  VerbsPath,
  VerbsPd,
  VerbsQp,
  VerbsQpStatus,
} from '../../../src/platform/rdma/verbs-types.js';

/** A device of a host. */
export interface FakeDeviceOptions {
  readonly name: string;
  /** The address of its only port */
  readonly ipv4: string;
  readonly transport?: VerbsDevice['transport'];
  /** Default 1000. */
  readonly maxMrs?: number;
  /** What it says of itself, where that is not what others say. */
  readonly attributes?: Partial<VerbsDeviceAttributes>;
  /** GIDs of its port in front of that of `ipv4`. Default: a link-local one. */
  readonly gids?: readonly string[];
  /** Completions that a queue really holds, whatever it was made with: a fault. Default: none. */
  readonly cqHolds?: number;
  /** On-demand paging, explicit and implicit. Default false. */
  readonly onDemand?: boolean;
  /** The real path of what it belongs to in sysfs */
  readonly parent?: string;
}

/** A handle whose address goes to 0. */
export type Owned<T> = { -readonly [K in keyof T]: T[K] };

export interface FakeMr extends Owned<VerbsMr> {
  readonly pd: FakePd;
  readonly start: number;
  readonly length: number;
  readonly access: number;
  /** Windows bound to it. */
  bound: number;
  bytes(offset: number, length: number): Uint8Array;
  release(): void;
}

export interface FakeMw extends Owned<VerbsMw> {
  readonly pd: FakePd;
  rkey: number;
  target: { mr: FakeMr; start: number; length: number; access: number } | undefined;
}

export interface FakeContext extends Owned<VerbsContext> {
  readonly device: FakeDevice;
  readonly events: VerbsAsyncEvent[];
  readonly signal: Signal;
  children: number;
}

export interface FakePd extends Owned<VerbsPd> {
  readonly context: FakeContext;
  children: number;
}

export interface FakeChannel extends Owned<VerbsChannel> {
  readonly context: FakeContext;
  readonly events: FakeCq[];
  readonly signal: Signal;
  children: number;
}

export interface FakeCq extends Owned<VerbsCq> {
  readonly context: FakeContext;
  readonly channel: FakeChannel | undefined;
  readonly done: Done[];
  armed: boolean;
  children: number;
}

export interface FakeQp extends Owned<VerbsQp> {
  readonly pd: FakePd;
  readonly sendCq: FakeCq;
  readonly receiveCq: FakeCq;
  readonly signalAll: boolean;
  status: VerbsQpStatus;
  peerGid: string;
  readonly posted: Receive[];
  readonly todo: Send[];
}

export interface FakeAh extends Owned<VerbsAh> {
  readonly pd: FakePd;
  readonly path: VerbsPath;
}

export interface Segment {
  readonly va: number;
  readonly length: number;
  readonly lkey: number;
}

export interface Receive {
  readonly id: number;
  readonly segments: readonly Segment[];
}

export interface Send extends Receive {
  readonly opcode: number;
  readonly flags: number;
  readonly immediate: number;
  readonly remote: number;
  readonly rkey: number;
  readonly compare: bigint;
  readonly swap: bigint;
  readonly ah: number;
  readonly number: number;
  readonly qkey: number;
  readonly window: {
    readonly mw: number;
    readonly rkey: number;
    readonly mr: number;
    readonly start: number;
    readonly length: number;
    readonly access: number;
  };
}

/** A completion. */
export interface Done {
  readonly id: number;
  readonly status: number;
  readonly opcode: number;
  readonly bytes: number;
  readonly immediate: number;
  readonly qp: number;
  readonly source: number;
  readonly flags: number;
}

export interface FakeDevice {
  readonly options: FakeDeviceOptions;
  readonly facts: VerbsDevice;
  readonly gid: string;
  readonly contexts: Set<FakeContext>;
  /** Live regions and bound windows, by key. */
  readonly mrs: Map<number, FakeMr>;
  readonly windows: Map<number, FakeMw>;
  gone: boolean;
}

/** A descriptor that is only a number: ready as long as something is there. */
export class Signal {
  readonly fd: number;
  readonly #isReady: () => boolean;
  readonly #watchers = new Set<() => void>();

  constructor(fd: number, isReady: () => boolean) {
    this.fd = fd;
    this.#isReady = isReady;
  }

  watch(onReady: () => void): Watch {
    let alive: NodeJS.Timeout | undefined = setInterval(() => undefined, 2 ** 30);
    const turn = (): void => {
      if (!this.#watchers.has(turn) || !this.#isReady()) return;
      onReady();
      setImmediate(turn);
    };
    this.#watchers.add(turn);
    setImmediate(turn);
    return {
      setRef: (keepAlive) => {
        if (!keepAlive) alive?.unref();
        else alive?.ref();
      },
      close: () => {
        clearInterval(alive);
        alive = undefined;
        this.#watchers.delete(turn);
      },
    };
  }

  ring(): void {
    for (const turn of this.#watchers) setImmediate(turn);
  }
}

/** The context has something to tell. */
export function tell(context: FakeContext, event: VerbsAsyncEvent): void {
  context.events.push(event);
  context.signal.ring();
}
