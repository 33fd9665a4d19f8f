/** Errors for calls on a device, or on a driver, that is no longer open. */
import { DmaError } from '../errors.js';

/** The error of a bus when DMA is asked for on a device that is not open. @param device its name, with the bus */
export function closedDevice(device: string): DmaError {
  return new DmaError({
    code: 'ENODEV',
    operation: 'dma',
    device,
    reason: 'the device is closed',
    hint: 'eal.probe(name) opens it',
  });
}

/** The error of a driver after it has released its device. */
export function closedDriver(operation: string): DmaError {
  const hint = 'the device was removed, or its Eal was stopped: eal.probe(name) opens it again';
  return new DmaError({ code: 'ECANCELED', operation, reason: 'the driver is closed', hint });
}
