/** The handles of the libibverbs port: addresses of its structs, with what is needed to use and release them. */
import type { CFunction, Libc } from '../linux/libc.js';
import { CONTEXT, mutexSize, VERBS_CONTEXT } from './abi/context.js';
import type {
  VerbsAh,
  VerbsChannel,
  VerbsContext,
  VerbsCq,
  VerbsHandle,
  VerbsMr,
  VerbsMw,
  VerbsPd,
  VerbsQp,
} from './verbs-types.js';

/** The functions of an open device; undefined if it lacks one. */
export interface ContextFunctions {
  readonly allocMw: CFunction | undefined;
  readonly bindMw: CFunction | undefined;
  readonly deallocMw: CFunction | undefined;
  readonly pollCq: CFunction;
  readonly reqNotifyCq: CFunction;
  readonly postSend: CFunction;
  readonly postRecv: CFunction;
  readonly queryPort: CFunction | undefined;
  readonly adviseMr: CFunction | undefined;
  readonly queryDeviceEx: CFunction | undefined;
}

/** Finds the functions of the `ibv_context` at an address. */
export function contextFunctions(libc: Libc): (context: number) => ContextFunctions {
  const post = libc.callable('int', 'intptr_t', 'intptr_t', 'intptr_t');
  const poll = libc.callable('int', 'intptr_t', 'int', 'intptr_t');
  const notify = libc.callable('int', 'intptr_t', 'int');
  const allocMw = libc.callable('intptr_t', 'intptr_t', 'int');
  const bindMw = libc.callable('int', 'intptr_t', 'intptr_t', 'void *');
  const deallocMw = libc.callable('int', 'intptr_t');
  const queryPort = libc.callable('int', 'intptr_t', 'uint8_t', 'void *', 'size_t');
  const adviseMr = libc.callable('int', 'intptr_t', 'int', 'uint', 'void *', 'uint');
  const queryDeviceEx = libc.callable('int', 'intptr_t', 'intptr_t', 'void *', 'size_t');
  const toAbiCompat = CONTEXT.mutex + mutexSize(process.arch);

  return (context) => {
    const optional = (at: number, make: (va: number) => CFunction): CFunction | undefined => {
      const va = peekPointer(libc, at);
      return va === 0 ? undefined : make(va);
    };
    const always = (offset: number, make: (va: number) => CFunction) => make(peekPointer(libc, context + offset));
    const outer = context - VERBS_CONTEXT.context;
    const isExtended =
      libc.peek(context + toAbiCompat) === 0xffffffff && libc.peek(context + toAbiCompat + 4) === 0xffffffff;
    /** Like the header's `verbs_get_ctx_op`. */
    const extended = (offset: number, make: (va: number) => CFunction): CFunction | undefined => {
      const whole = VERBS_CONTEXT.context + toAbiCompat + 8;
      if (!isExtended || peekPointer(libc, outer + VERBS_CONTEXT.sz) < whole - offset) return undefined;
      return optional(outer + offset, make);
    };
    return {
      allocMw: optional(context + CONTEXT['ops.alloc_mw'], allocMw),
      bindMw: optional(context + CONTEXT['ops.bind_mw'], bindMw),
      deallocMw: optional(context + CONTEXT['ops.dealloc_mw'], deallocMw),
      pollCq: always(CONTEXT['ops.poll_cq'], poll),
      reqNotifyCq: always(CONTEXT['ops.req_notify_cq'], notify),
      postSend: always(CONTEXT['ops.post_send'], post),
      postRecv: always(CONTEXT['ops.post_recv'], post),
      queryPort: extended(VERBS_CONTEXT.query_port, queryPort),
      adviseMr: extended(VERBS_CONTEXT.advise_mr, adviseMr),
      queryDeviceEx: extended(VERBS_CONTEXT.query_device_ex, queryDeviceEx),
    };
  };
}

/** Reads the pointer (or 64-bit number) at `va`. */
export function peekPointer(libc: Libc, va: number): number {
  return libc.peek(va) + libc.peek(va + 4) * 4294967296;
}

export class DeviceContext implements VerbsContext {
  /** All open objects created on it, by address. */
  readonly parts = new Map<number, VerbsHandle>();

  constructor(
    public address: number,
    readonly name: string,
    readonly asyncFd: number,
    readonly vectors: number,
    readonly functions: ContextFunctions,
  ) {}
}

/** An object created on a context. */
export abstract class Part {
  constructor(
    public address: number,
    readonly context: DeviceContext,
  ) {
    context.parts.set(address, this);
  }
}

export class Pd extends Part implements VerbsPd {}

/** An object created in a protection domain. */
abstract class Member extends Part {
  constructor(
    address: number,
    readonly pd: Pd,
  ) {
    super(address, pd.context);
  }
}

export class Mr extends Member implements VerbsMr {
  constructor(
    address: number,
    pd: Pd,
    readonly lkey: number,
    readonly rkey: number,
  ) {
    super(address, pd);
  }
}

export class Mw extends Member implements VerbsMw {
  constructor(
    address: number,
    pd: Pd,
    readonly type: 1 | 2,
    public rkey: number,
  ) {
    super(address, pd);
  }
}

export class CompletionChannel extends Part implements VerbsChannel {
  constructor(
    address: number,
    context: DeviceContext,
    readonly fd: number,
  ) {
    super(address, context);
  }
}

export class Cq extends Part implements VerbsCq {
  constructor(
    address: number,
    context: DeviceContext,
    readonly channel: CompletionChannel | undefined,
    public entries: number,
  ) {
    super(address, context);
  }
}

/** The sizes of a queue pair. */
export interface QpShape {
  readonly number: number;
  readonly sends: number;
  readonly receives: number;
  readonly sendSges: number;
  readonly receiveSges: number;
  readonly inline: number;
}

export class Qp extends Member implements VerbsQp {
  readonly number: number;
  readonly sends: number;
  readonly receives: number;
  readonly sendSges: number;
  readonly receiveSges: number;
  readonly inline: number;

  constructor(
    address: number,
    pd: Pd,
    readonly type: 'rc' | 'uc' | 'ud',
    readonly sendCq: Cq,
    readonly receiveCq: Cq,
    shape: QpShape,
  ) {
    super(address, pd);
    this.number = shape.number;
    this.sends = shape.sends;
    this.receives = shape.receives;
    this.sendSges = shape.sendSges;
    this.receiveSges = shape.receiveSges;
    this.inline = shape.inline;
  }
}

export class Ah extends Member implements VerbsAh {}
