/** The keys of device names, for help pages: explained by buses and drivers. */
import { BUS_KEYS } from '../../bus/builtin.js';
import { DRIVER_KEYS } from '../../drivers/builtin.js';

export const DEVICE_KEYS_TEXT = [
  'Keys follow the name, with commas.',
  ...BUS_KEYS,
  ...DRIVER_KEYS,
  'An unknown key is refused.',
].join(' ');
