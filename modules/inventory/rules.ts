import type { Localised } from '../../plugins/contracts.js'
import type { LotStatus, MovementType } from '../../schemas/inventory.js'

/**
 * 1970-01-01, the first day that consumption is counted from. A year such as 0000 is a slip of a program, and would make a series
 * of 740,000 days of it.
 */
export const OCCURRED_AT_MIN = 0

/** What the ledger refuses, in words; each completes "Line 3: …" or "Line 3: TOMATOES …". */

const withArticle = (type: MovementType) => `${/^[aio]/.test(type) ? 'an' : 'a'} ${type}`

/** Of a quantity that the type does not take. */
export const wrongQuantity = (type: MovementType, quantity: number): Localised =>
  type === 'adjustment'
    ? {
        en: 'the quantity of an adjustment is not zero; below zero it takes away',
        fr: 'la quantité d’un ajustement (adjustment) n’est pas nulle ; négative, elle retire'
      }
    : {
        en: `the quantity of ${withArticle(type)} is above zero (it is ${quantity})`,
        fr: `la quantité d’un mouvement ${type} est supérieure à zéro (elle est de ${quantity})`
      }
export const NEEDS_TO_LOCATION: Localised = {
  en: 'a transfer needs toLocation',
  fr: 'un transfert (transfer) demande toLocation'
}
export const noToLocation = (type: MovementType): Localised => ({
  en: `toLocation belongs to a transfer, not to ${withArticle(type)}`,
  fr: `toLocation appartient à un transfert (transfer), pas à un mouvement ${type}`
})
export const SAME_LOCATION: Localised = {
  en: 'location and toLocation are the same',
  fr: 'location et toLocation sont identiques'
}
export const tooSmall = (quantity: number, unit: string, baseUnit: string): Localised => ({
  en: `${quantity} ${unit} is less than 0.000001 ${baseUnit}`,
  fr: `${quantity} ${unit} fait moins de 0.000001 ${baseUnit}`
})
export const tooLarge = (quantity: number, unit: string, baseUnit: string): Localised => ({
  en: `${quantity} ${unit} is more than can be counted in ${baseUnit}`,
  fr: `${quantity} ${unit} dépasse ce qui peut se compter en ${baseUnit}`
})

export const NOT_TRACKED: Localised = {
  en: 'is not tracked by lot, so neither a lot nor its expiry may be named',
  fr: 'n’est pas suivi par lot, ni un lot ni sa péremption ne peuvent donc être nommés'
}
export const expiresOtherwise = (lot: string, expiresOn: string | null): Localised => ({
  en: `has the lot ${lot} with ${expiresOn === null ? 'no expiry' : `the expiry ${expiresOn}`}; PUT …/inventory/lots changes it`,
  fr: `a le lot ${lot} ${expiresOn === null ? 'sans péremption' : `avec la péremption ${expiresOn}`} ; PUT …/inventory/lots la change`
})
export const ONE_SERIAL: Localised = {
  en: 'is tracked by serial number: a line names one as its lot and moves exactly 1',
  fr: 'est suivi par numéro de série : une ligne en nomme un comme lot et déplace exactement 1'
}
export const NAMES_ITS_LOT: Localised = {
  en: 'is tracked by lot, so what comes in or is reserved names its lot',
  fr: 'est suivi par lot, ce qui entre ou se réserve nomme donc son lot'
}
export const notIssued = (lot: string, status: LotStatus): Localised => ({
  en: `may not be issued from the lot ${lot}: it is ${status}`,
  fr: `ne peut pas être sorti du lot ${lot} : il est ${status}`
})
export const notReserved = (lot: string, status: LotStatus): Localised => ({
  en: `may not be reserved from the lot ${lot}: it is ${status}`,
  fr: `ne peut pas être réservé dans le lot ${lot} : il est ${status}`
})
export const inStockAlready = (serial: string): Localised => ({
  en: `has the serial number ${serial} in stock already`,
  fr: `a déjà le numéro de série ${serial} en stock`
})
