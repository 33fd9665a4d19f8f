/** What can be said of a device behind its name, for help pages. */

/** Keys of names of vfio-user; the page docs/vfio-user.md has more. */
export const DEVICE_KEYS_TEXT = `Keys follow the name, with commas. vfio-user:PATH takes timeout=MS for connecting and for each call (5000);
  mmap=auto|trust|sealed|never, which registers are mapped: with auto those of servers of this user and of root, and the rest is
  reached by messages, some 100 us each; share=always|never, whether the server gets descriptors of memory, by which it reaches the
  whole file for good, or asks for each access; and user=NUMBER, whose server it has to be. A key that is not known is refused.`;
