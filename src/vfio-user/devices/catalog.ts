/** The devices that can be served, by name. */
import { invalid } from '../../errors.js';
import { show } from '../../show.js';
import { copyEngineModel } from './copy-engine.js';
import type { CopyEngineModelOptions } from './copy-engine.js';
import { eduModel } from './edu.js';
import type { EduModelOptions } from './edu.js';
import type { ModelFactory } from './model.js';
import { nvmeModel } from './nvme/nvme.js';
import type { NvmeModelOptions } from './nvme/options.js';

/** The options of each device. */
export interface DeviceOptions {
  readonly edu: EduModelOptions;
  readonly copy: CopyEngineModelOptions;
  readonly nvme: NvmeModelOptions;
}

/** The name of a device. */
export type DeviceName = keyof DeviceOptions;

const FACTORIES: { readonly [N in DeviceName]: (options?: DeviceOptions[N]) => ModelFactory } = {
  edu: eduModel,
  copy: copyEngineModel,
  nvme: (options) => nvmeModel(options),
};

/** All names, for messages to people. */
export const DEVICE_NAMES = Object.keys(FACTORIES) as readonly DeviceName[];

/** Whether `name` is the name of a device. */
export function isDeviceName(name: string): name is DeviceName {
  return Object.hasOwn(FACTORIES, name);
}

/**
 * Creates the device with this name.
 *
 * @throws DmaError EINVAL for an unknown name, or options out of range
 */
export function deviceModel<N extends DeviceName>(name: N, options?: DeviceOptions[N]): ModelFactory {
  if (!isDeviceName(name))
    throw invalid('deviceModel', `no device is called ${show(name)}`, {
      hint: `there are ${DEVICE_NAMES.join(' and ')}; a model of your own is served by serve()`,
    });
  return FACTORIES[name](options);
}
