/** The drivers that come with the library, in the order they are tried. A new one is a file beside this, and a line here. */
import type { Driver } from '../bus/model.js';
import { copyEngineDriver } from './copy-engine-driver.js';
import { EDU_KEYS, eduDriver } from './edu-driver.js';
import { rawDriver } from './raw-driver.js';
import { verbsDriver } from './verbs-driver.js';

/** `verbs` takes functions that stay with their kernel driver, so it is first; `raw` takes what is left, so it is last. */
export const builtinDrivers: readonly Driver[] = [verbsDriver, copyEngineDriver, eduDriver, rawDriver];

/** What the keys of device names mean that these drivers know, in sentences for help pages. */
export const DRIVER_KEYS: readonly string[] = [EDU_KEYS];
