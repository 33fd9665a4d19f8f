/**
 * How a suite asks the host for something: it leaves a file in the directory that both share, and the host leaves one with
 * the answer. The host's end is here; the guest's is host.ts.
 */
import { readFileSync, renameSync, rmSync, watch, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Qmp } from './qmp.js';
import { Wire } from './wire.js';

/** What can be asked for. */
export type Request =
  /** One command of QEMU's monitor. */
  | { readonly kind: 'qmp'; readonly command: string; readonly parameters: Readonly<Record<string, unknown>> }
  /** To be told when a device whose removal has been asked for is gone. */
  | { readonly kind: 'gone'; readonly device: string; readonly timeoutMs: number }
  /** For a network backend whose other end echoes frames; to have it taken away; how many frames it has echoed. */
  | { readonly kind: 'wire' | 'unwire' | 'echoed'; readonly id: string };

export type Answer = { readonly value: unknown } | { readonly error: string };

/** Writes a file that whoever watches the directory sees complete or not at all. */
export function leave(directory: string, name: string, content: Request | Answer): void {
  const draft = join(directory, `draft-${name}`);
  writeFileSync(draft, JSON.stringify(content));
  renameSync(draft, join(directory, name));
}

/** Answers the requests in `share` by the monitor at `socket`, until disposed. */
export class RequestService implements Disposable {
  readonly #share: string;
  /** Where sockets are. */
  readonly #directory: string;
  readonly #qmp: Promise<Qmp>;
  readonly #gone = new Set<string>();
  readonly #wires = new Map<string, Wire>();
  readonly #stop = new AbortController();

  constructor(share: string, socket: string) {
    this.#share = share;
    this.#directory = dirname(socket);
    this.#qmp = Qmp.connect(socket, ({ event, data }) => {
      if (event === 'DEVICE_DELETED' && typeof data?.device === 'string') this.#gone.add(data.device);
    });
    // Whoever asks is told.
    this.#qmp.catch(() => undefined);
    watch(share, { signal: this.#stop.signal }, (_, name) => {
      if (name?.startsWith('request-') === true) void this.#serve(name);
    }).on('error', () => undefined);
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
    for (const wire of this.#wires.values()) wire[Symbol.dispose]();
    void this.#qmp.then(
      (qmp) => qmp.close(),
      () => undefined,
    );
  }

  async #serve(name: string): Promise<void> {
    const path = join(this.#share, name);
    let request: Request;
    try {
      request = JSON.parse(readFileSync(path, 'utf8')) as Request;
      rmSync(path);
    } catch {
      return; // It has been served: its removal is seen, too.
    }
    const answer = await this.#answer(request).then(
      (value): Answer => ({ value: value ?? null }),
      (error: unknown): Answer => ({ error: error instanceof Error ? error.message : String(error) }),
    );
    if (!this.#stop.signal.aborted) leave(this.#share, name.replace('request', 'answer'), answer);
  }

  async #answer(request: Request): Promise<unknown> {
    if (request.kind === 'qmp') {
      const { command, parameters } = request;
      // From here on it counts as there, or as being removed.
      if (command.startsWith('device_')) this.#gone.delete(String(parameters.id));
      return (await this.#qmp).execute(command, parameters);
    }
    if (request.kind !== 'gone') return this.#wire(request.kind, request.id);
    const deadline = performance.now() + request.timeoutMs;
    while (!this.#gone.has(request.device)) {
      if (performance.now() > deadline)
        throw new Error(`${request.device} is still there after ${request.timeoutMs} ms`);
      await delay(20, undefined, { signal: this.#stop.signal });
    }
    return null;
  }

  async #wire(kind: 'wire' | 'unwire' | 'echoed', id: string): Promise<unknown> {
    const qmp = await this.#qmp;
    const there = this.#wires.get(id);
    if (kind === 'wire') {
      this.#wires.set(id, await Wire.open(qmp, id, this.#directory));
      return null;
    }
    if (there === undefined) throw new Error(`there is no wire ${id}`);
    if (kind === 'echoed') return there.frames;
    this.#wires.delete(id);
    there[Symbol.dispose]();
    return qmp.execute('netdev_del', { id });
  }
}
