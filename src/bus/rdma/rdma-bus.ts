/** The bus of the kernel's RDMA devices, by their kernel names: `rdma:mlx5_0`, `rdma:rxe0`. */
import { DmaError } from '../../errors.js';
import type { RdmaContexts } from '../../rdma/context.js';
import type { Description } from '../description.js';
import type { Bus, OpenedDevice } from '../model.js';
import { describeRdma } from './facts.js';
import { openRdma } from './open-rdma.js';

/**
 * The bus `rdma`. The address space comes from the driver.
 */
export class RdmaBus implements Bus {
  readonly name = 'rdma';
  readonly keys: readonly string[] = [];
  readonly naming = 'as the kernel calls it, such as rxe0 or mlx5_0: letters, digits, dots, dashes, up to 63';
  readonly takesAnyName = true;
  readonly #contexts: RdmaContexts;

  constructor(contexts: RdmaContexts) {
    this.#contexts = contexts;
  }

  /** Accepts every text that can be a kernel name of an RDMA device. */
  parse(name: string): string | undefined {
    return /^[A-Za-z][\w.-]{0,62}$/.test(name) ? name : undefined;
  }

  async scan(): Promise<readonly string[]> {
    return this.#contexts.devices().map(({ name }) => name);
  }

  /** The attributes of every device: each is opened, queried and closed. */
  describe(): Description {
    return describeRdma(this.#contexts.verbs);
  }

  async open(name: string): Promise<OpenedDevice> {
    const { limitation } = this.#contexts;
    if (limitation !== undefined)
      throw new DmaError({ code: 'ENOTSUP', operation: 'open', device: `rdma:${name}`, reason: limitation });
    if (!this.#contexts.devices().some((device) => device.name === name)) {
      const names = this.#contexts.devices().map((device) => device.name);
      const hint =
        names.length === 0
          ? 'the kernel has no RDMA devices; "rdma link add rxe0 type rxe netdev NAME" creates one on a network interface'
          : `RDMA devices: ${names.join(', ')}`;
      throw new DmaError({
        code: 'ENODEV',
        operation: 'open',
        device: `rdma:${name}`,
        reason: 'there is no such device',
        hint,
      });
    }
    return openRdma(this.#contexts, name);
  }
}
