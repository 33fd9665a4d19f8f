/** A client's connection to a server: its sockets, the commands that wait for replies, and how it ends. */
import { DmaError, isDmaError, NO_DESCRIPTORS } from '../errors.js';
import type { ErrorCode } from '../errors.js';
import type { Holders } from '../memory/shared/holders.js';
import type { Platform } from '../platform/ports.js';
import { clearTimeout, delay, setTimeout } from '../timers.js';
import { Call } from './call.js';
import { Channel, pump, servesHere } from './channel.js';
import type { CallOptions, DmaTarget } from './client-options.js';
import { DeviceRequests } from './device-requests.js';
import { isCommand, protocolError } from './framing.js';
import { COMMAND, FLAG, errorOfReply, operationOf, type Message } from './messages.js';
import { OutBuffer } from './out-buffer.js';
import { mayNotPost, SharedSocket, type PostedLoan } from './posted-stores.js';

/** Errors from decoding a reply that are passed on unchanged; any other means that the reply makes no sense. */
const GIVEN_ON: readonly ErrorCode[] = ['EPROTO', 'ENOMEM', ...NO_DESCRIPTORS];

/** What a connection tells its owner when it ends, in this order. */
export interface ConnectionOwner {
  /** @param wanted was it closed by the owner? @returns the error of running and later calls */
  failureOf(error: DmaError, wanted: boolean): DmaError;
  /** Its sockets are closed: gives back what came over them, before the calls end. */
  release(): void;
  /** Its calls have ended. */
  ended(error: DmaError, wanted: boolean): void;
}

/** What another process needs to continue a connection, besides its sockets: that of commands first, then the twin. */
export interface HandedConnection {
  readonly nextId: number;
  readonly asks: boolean;
  /** What was received and not handled, socket by socket. */
  readonly rest: readonly Uint8Array[];
}

/** One connection. Owns its sockets. */
export class Connection {
  /** Where the next command is written, with the id of {@link id}. */
  readonly out = new OutBuffer();
  readonly #platform: Platform;
  readonly #owner: ConnectionOwner;
  readonly #timeoutMs: number;
  readonly #requests: DeviceRequests;
  readonly #main: Channel;
  #channels: readonly Channel[];
  readonly #pending = new Map<number, Call<unknown>>();
  #nextId = 0;
  /** Does the server ask for memory by message? */
  #asks = false;
  #failure: DmaError | undefined;
  /** Why nothing can be sent for now. */
  #paused: DmaError | undefined;
  /** Once other threads store to registers. */
  #shared: SharedSocket | undefined;

  constructor(
    platform: Platform,
    fd: number,
    owner: ConnectionOwner,
    options: { readonly timeoutMs?: number; readonly dmaTarget?: DmaTarget },
    paused = false,
  ) {
    this.#platform = platform;
    this.#owner = owner;
    this.#timeoutMs = options.timeoutMs ?? 5000;
    this.#requests = new DeviceRequests(options.dmaTarget);
    this.#main = this.#channel(fd, true, paused);
    this.#channels = [this.#main];
  }

  /** Why it ended; `undefined` while it is open. */
  get failure(): DmaError | undefined {
    return this.#failure;
  }

  /** Is a message being handled? Nobody would read the answer to a blocking call. */
  get isDispatching(): boolean {
    return this.#channels.some((channel) => channel.dispatching);
  }

  /**
   * May commands be sent that nobody waits for? Without a twin socket, servers that ask for memory take the next command
   * for their answer, so that only one command can be outstanding.
   */
  get mayPost(): boolean {
    return this.#channels.length > 1 || !this.#asks;
  }

  /** The server will have to ask for memory. */
  willBeAsked(): void {
    this.#asks = true;
    if (!this.mayPost) this.#shared?.refuse();
  }

  /** Lets other threads send stores to the registers of a region. @throws DmaError ENOTSUP; why the connection ended */
  lend(region: number, holders: Holders): PostedLoan {
    this.#mustBeOpen(COMMAND.REGION_WRITE);
    if (!this.mayPost) throw mayNotPost('vfio-user lendStores');
    if (this.#shared === undefined) {
      this.#shared = new SharedSocket(holders);
      this.#main.lock = this.#shared.lock;
    }
    return this.#shared.lend(this.#platform, this.#main.fd, region);
  }

  /** The server's commands come over this socket from now on. */
  addTwin(fd: number, paused = false): void {
    this.#channels = [this.#main, this.#channel(fd, false, paused)];
  }

  /** The sockets, in the order of {@link HandedConnection}. */
  get fds(): readonly number[] {
    return this.#channels.map(({ fd }) => fd);
  }

  /**
   * Waits until nothing is outstanding, and handles nothing from then on: another process can continue. {@link resume} or
   * {@link abandon} follows.
   *
   * @param why of the calls that are refused meanwhile
   * @throws DmaError why it ended; EBUSY if the server sends descriptors
   */
  async pause(why: DmaError): Promise<HandedConnection> {
    this.#paused = why;
    const rest: Uint8Array[] = [];
    try {
      // Every call has a time limit of its own.
      while (this.#failure === undefined && (this.#pending.size > 0 || this.#channels.some(({ isSent }) => !isSent)))
        await delay(1);
      if (this.#failure !== undefined) throw this.#failure;
      for (const channel of this.#channels) channel.pause();
      for (const channel of this.#channels) rest.push(channel.takeRest());
      return { nextId: this.#nextId, asks: this.#asks, rest };
    } catch (error) {
      this.resume({ nextId: this.#nextId, asks: this.#asks, rest });
      throw error;
    }
  }

  /** Continues what was paused, here or in another process. */
  resume({ nextId, asks, rest }: HandedConnection): void {
    this.#paused = undefined;
    this.#nextId = nextId;
    this.#asks = asks;
    this.#channels.forEach((channel, i) => {
      const left = rest.at(i);
      if (left !== undefined) channel.restore(left);
      channel.resume();
    });
  }

  /** Another process has it: ends it here, which the server does not notice. */
  abandon(error: DmaError): void {
    this.#end(error, true, (channel) => channel.abandon(error));
  }

  /** An id for the next command. */
  id(): number {
    // Ids of running calls are skipped; there are never 65536 of them.
    do this.#nextId = (this.#nextId + 1) & 0xffff;
    while (this.#pending.has(this.#nextId));
    return this.#nextId;
  }

  /** Sends {@link out}, which has the id of the last {@link id}, as a command. */
  send<T>(command: number, size: number, fds: readonly number[], decode: (reply: Message) => T): Call<T> {
    const call = new Call(command, decode);
    const refused = this.#failure ?? this.#paused;
    if (refused !== undefined) {
      call.settle(refused);
      return call;
    }
    if (this.#pending.size >= 0x8000 || !this.#main.send(this.out.message(size), fds)) {
      call.settle(tooMuch(command));
      return call;
    }
    // Sending may have found that the connection ended.
    if (this.#failure !== undefined) call.settle(this.#failure);
    else this.#pending.set(this.#nextId, call);
    return call;
  }

  /** Sends {@link out} as a command without a reply. @throws DmaError EAGAIN; why the connection ended */
  post(command: number, size: number): void {
    this.#mustBeOpen(command);
    if (!this.#main.send(this.out.message(size))) throw tooMuch(command);
    // Sending may have found that the connection ended.
    this.#mustBeOpen(command);
  }

  /** Blocks until the call is done, and serves the device's own requests meanwhile. @throws DmaError of the call */
  wait(call: Call<unknown>, options: CallOptions | undefined): void {
    const timeoutMs = options?.timeoutMs ?? this.#timeoutMs;
    if (!call.done && !pump(this.#platform, this.#channels, call, timeoutMs)) this.#expire(call, timeoutMs);
    call.result();
  }

  /** Resolves when the call is done. @throws DmaError of the call */
  async whenDone(call: Call<unknown>, options: CallOptions | undefined): Promise<void> {
    if (!call.done) await this.#settled(call, options?.timeoutMs ?? this.#timeoutMs);
    call.result();
  }

  /** Ends the connection, once. */
  end(error: DmaError, wanted: boolean): void {
    this.#end(error, wanted, (channel) => channel.close(error));
  }

  #end(error: DmaError, wanted: boolean, close: (channel: Channel) => void): void {
    if (this.#failure !== undefined) return;
    const failure = this.#owner.failureOf(error, wanted);
    this.#failure = failure;
    for (const channel of this.#channels) close(channel);
    this.#owner.release();
    const calls = [...this.#pending.values()];
    this.#pending.clear();
    for (const call of calls) call.settle(failure);
    this.#owner.ended(error, wanted);
  }

  #channel(fd: number, main: boolean, paused: boolean): Channel {
    // Calls that wait have a timer; an idle connection does not keep the process alive.
    const channel = new Channel(
      this.#platform,
      fd,
      {
        onMessage: (message) => {
          if (isCommand(message)) {
            if (main) this.willBeAsked();
            this.#requests.serve(channel, message);
          } else if (main) this.#settle(message);
          else throw protocolError('a reply on the twin socket');
        },
        onClose: (error) => {
          this.end(error, false);
        },
      },
      { keepAlive: false, paused },
    );
    return channel;
  }

  #mustBeOpen(command: number): void {
    const failure = this.#failure ?? this.#paused;
    if (failure !== undefined) throw failure.with({ operation: operationOf(command) });
  }

  #settled(call: Call<unknown>, timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        // The answer may have arrived but not been read, because this thread was busy.
        this.#main.service();
        if (!call.done) this.#expire(call, timeoutMs);
      }, timeoutMs);
      call.onDone = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #expire(call: Call<unknown>, timeoutMs: number): void {
    const operation = operationOf(call.command);
    const reason = `no answer within ${Math.round(timeoutMs)} ms`;
    const hint = servesHere()
      ? 'this thread serves a device too, and nothing asynchronous that its model does goes on while a call blocks: serve it ' +
        'in another process (spawnDevice) or a worker'
      : undefined;
    const error = new DmaError({ code: 'ETIMEDOUT', operation, reason, hint });
    for (const [id, other] of this.#pending) {
      if (other !== call) continue;
      this.#pending.delete(id);
      call.settle(error);
    }
    this.end(
      error.with({ code: 'ECONNABORTED', reason: `the connection was given up: ${operation}: ${reason}` }),
      false,
    );
  }

  #settle(reply: Message): void {
    const call = this.#pending.get(reply.id);
    if (call === undefined || call.command !== reply.command || (reply.flags & FLAG.TYPE) !== FLAG.REPLY)
      throw protocolError(`an answer to ${operationOf(reply.command)}, id ${reply.id}, which was not asked`);
    let error = errorOfReply(reply);
    if (error === undefined) {
      try {
        call.value = call.decode(reply);
      } catch (cause) {
        // An answer that does not cover the whole request fails only this call.
        if (isDmaError(cause, 'EIO')) error = cause;
        // A lack of resources in this process is not the server's fault.
        else
          throw isDmaError(cause) && GIVEN_ON.includes(cause.code)
            ? cause
            : protocolError(`a reply that makes no sense (${String(cause)})`, cause);
      }
    }
    if (reply.fds.length > 0 && call.command !== COMMAND.VERSION && call.command !== COMMAND.GET_REGION_INFO)
      throw protocolError(`descriptors with the reply to ${operationOf(reply.command)}`);
    this.#pending.delete(reply.id);
    call.settle(error);
  }
}

function tooMuch(command: number): DmaError {
  const reason = 'too much is waiting for the server already';
  return new DmaError({ code: 'EAGAIN', operation: operationOf(command), reason });
}
