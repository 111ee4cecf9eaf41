import { type Localised, problem } from '../../plugins/contracts.js'

export const ItemNotFound = problem<{ itemCode: string }>('INV_ITEM_NOT_FOUND', 404, {
  en: 'The item {itemCode} does not exist.',
  fr: 'L’article {itemCode} n’existe pas.'
})
export const ItemExists = problem<{ itemCode: string }>('INV_ITEM_EXISTS', 409, {
  en: 'There is already an item {itemCode}.',
  fr: 'L’article {itemCode} existe déjà.'
})
export const ItemCodeReserved = problem<{ itemCode: string }>('INV_ITEM_CODE_RESERVED', 422, {
  en: '"{itemCode}" is a part of this API’s own addresses, where an item of that code could not be found; take another code.',
  fr: '« {itemCode} » fait partie des adresses de cette API, où un article de ce code serait introuvable ; prenez un autre code.'
})
export const ItemUnitFixed = problem<{ itemCode: string; unit: string; tracking: string }>('INV_ITEM_UNIT_FIXED', 409, {
  en: '{itemCode} was counted in {unit} with the tracking {tracking} before it was archived, and its history still is.',
  fr: '{itemCode} se comptait en {unit} avec le suivi {tracking} avant d’être archivé, et son historique l’est encore.'
})
export const ItemHasStock = problem<{ itemCode: string; onHand: number }>('INV_ITEM_HAS_STOCK', 409, {
  en: '{itemCode} still has {onHand} on hand; issue, waste or adjust it to zero first.',
  fr: '{itemCode} a encore {onHand} en stock ; sortez-le ou ajustez-le à zéro d’abord.'
})
export const BarcodeTaken = problem<{ barcode: string; itemCode: string }>('INV_BARCODE_TAKEN', 409, {
  en: 'The barcode {barcode} belongs to {itemCode}.',
  fr: 'Le code-barres {barcode} appartient à {itemCode}.'
})
export const UnitNotFound = problem<{ unit: string }>('INV_UNIT_NOT_FOUND', 422, {
  en: 'The unit {unit} does not exist; the units are at /api/inventory/units, where a new one can be added.',
  fr: 'L’unité {unit} n’existe pas ; les unités sont sous /api/inventory/units, où l’on peut en ajouter.'
})
export const UnitExists = problem<{ unit: string }>('INV_UNIT_EXISTS', 409, {
  en: 'There is already a unit {unit}.',
  fr: 'L’unité {unit} existe déjà.'
})
export const UnitNotConvertible = problem<{ itemCode: string; unit: string; baseUnit: string }>(
  'INV_UNIT_NOT_CONVERTIBLE',
  422,
  {
    en: '{itemCode} is counted in {baseUnit}, and nothing says how much of it one {unit} is; set PUT /api/inventory/{itemCode}/units/{unit}.',
    fr: '{itemCode} se compte en {baseUnit}, et rien ne dit combien fait un(e) {unit} ; définissez PUT /api/inventory/{itemCode}/units/{unit}.'
  }
)
export const UnitIsBase = problem<{ itemCode: string; unit: string }>('INV_UNIT_IS_BASE', 422, {
  en: '{itemCode} is counted in {unit}, which is 1 and stays it; say how much another unit is.',
  fr: '{itemCode} se compte en {unit}, qui vaut 1 et le reste ; définissez une autre unité.'
})
export const CategoryExists = problem<{ category: string }>('INV_CATEGORY_EXISTS', 409, {
  en: 'There is already a category {category}.',
  fr: 'La catégorie {category} existe déjà.'
})
export const LocationNotFound = problem<{ location: string }>('INV_LOCATION_NOT_FOUND', 404, {
  en: 'The location {location} does not exist.',
  fr: 'L’emplacement {location} n’existe pas.'
})
export const LocationExists = problem<{ location: string }>('INV_LOCATION_EXISTS', 409, {
  en: 'There is already a location {location}.',
  fr: 'L’emplacement {location} existe déjà.'
})
export const LocationNotStocked = problem<{ location: string; kind: string }>('INV_LOCATION_NOT_STOCKED', 422, {
  en: '{location} is of the kind {kind}; stock is held at internal and transit locations only.',
  fr: '{location} est du type {kind} ; seuls les emplacements internes et de transit tiennent du stock.'
})
export const LotNotFound = problem<{ itemCode: string; lot: string }>('INV_LOT_NOT_FOUND', 404, {
  en: 'The item {itemCode} has no lot {lot}.',
  fr: 'L’article {itemCode} n’a pas de lot {lot}.'
})
export const LotRule = problem<{ itemCode: string; rule: Localised; line: number }>('INV_LOT_RULE', 422, {
  en: 'Line {line}: {itemCode} {rule}.',
  fr: 'Ligne {line} : {itemCode} {rule}.'
})
export const MovementRule = problem<{ line: number; rule: Localised }>('INV_MOVEMENT_RULE', 422, {
  en: 'Line {line}: {rule}.',
  fr: 'Ligne {line} : {rule}.'
})
export const InsufficientStock = problem<{
  itemCode: string
  location: string
  lot: string | null
  requested: number
  available: number
  line: number
}>('INV_INSUFFICIENT_STOCK', 409, {
  en: 'Line {line}: {requested} of {itemCode} were asked from {location}; {available} are available.',
  fr: 'Ligne {line} : {requested} de {itemCode} demandés à {location} ; {available} disponibles.'
})
export const StockLimit = problem<{ itemCode: string; line: number }>('INV_STOCK_LIMIT', 422, {
  en: 'Line {line}: the stock or value of {itemCode} would pass the limit of 10⁹.',
  fr: 'Ligne {line} : le stock ou la valeur de {itemCode} dépasserait la limite de 10⁹.'
})
export const OccurredInFuture = problem<{ occurredAt: string }>('INV_OCCURRED_IN_FUTURE', 422, {
  en: 'occurredAt ({occurredAt}) is in the future.',
  fr: 'occurredAt ({occurredAt}) est dans le futur.'
})
export const OccurredTooEarly = problem<{ occurredAt: string }>('INV_OCCURRED_TOO_EARLY', 422, {
  en: 'occurredAt ({occurredAt}) is before 1970-01-01T00:00:00Z, where the ledger begins.',
  fr: 'occurredAt ({occurredAt}) précède 1970-01-01T00:00:00Z, où commence le journal.'
})
export const MovementNotFound = problem<{ id: string }>('INV_MOVEMENT_NOT_FOUND', 404, {
  en: 'The movement {id} does not exist.',
  fr: 'Le mouvement {id} n’existe pas.'
})
export const AlreadyReversed = problem<{ id: string; reversedBy: string }>('INV_ALREADY_REVERSED', 409, {
  en: 'The movement {id} was reversed by {reversedBy}.',
  fr: 'Le mouvement {id} a été annulé par {reversedBy}.'
})
export const ReversalOfReversal = problem<{ id: string }>('INV_REVERSAL_OF_REVERSAL', 409, {
  en: 'The movement {id} is itself a reversal; post a new movement instead.',
  fr: 'Le mouvement {id} est lui-même une annulation ; passez un nouveau mouvement.'
})
export const ExpiresInPast = problem<{ expiresAt: string }>('INV_EXPIRES_IN_PAST', 422, {
  en: 'expiresAt ({expiresAt}) is in the past.',
  fr: 'expiresAt ({expiresAt}) est dans le passé.'
})
export const ReservationNotFound = problem<{ id: string }>('INV_RESERVATION_NOT_FOUND', 404, {
  en: 'The reservation {id} does not exist.',
  fr: 'La réservation {id} n’existe pas.'
})
export const ReservationClosed = problem<{ id: string; status: string }>('INV_RESERVATION_CLOSED', 409, {
  en: 'The reservation {id} is {status}.',
  fr: 'La réservation {id} est {status}.'
})
export const ImportUnreadable = problem<{ reason: Localised }>('INV_IMPORT_UNREADABLE', 400, {
  en: 'The file cannot be read: {reason}.',
  fr: 'Le fichier est illisible : {reason}.'
})
export const ImportRefused = problem<{ rejectedRows: number; shown: number; errors: readonly unknown[] }>(
  'INV_IMPORT_REFUSED',
  422,
  {
    en: '{rejectedRows} row(s) are refused, so nothing was stored; the first {shown} are in "errors".',
    fr: '{rejectedRows} ligne(s) refusée(s), rien n’a été enregistré ; les {shown} premières sont dans « errors ».'
  }
)
export const ImportNotFound = problem<{ id: string }>('INV_IMPORT_NOT_FOUND', 404, {
  en: 'The import {id} does not exist.',
  fr: 'L’import {id} n’existe pas.'
})
export const ImportNotUndoable = problem<{ id: string; status: string }>('INV_IMPORT_NOT_UNDOABLE', 409, {
  en: 'The import {id} is {status} and cannot be undone.',
  fr: 'L’import {id} est {status} et ne peut être défait.'
})
export const ImportLost = problem<{ id: string }>('INV_IMPORT_FILE_LOST', 409, {
  en: 'The file of the import {id} is gone, so it cannot go on; what was posted of it is undone.',
  fr: 'Le fichier de l’import {id} a disparu ; ce qui en était saisi est défait.'
})
export const CostHidden = problem<{ sort: string }>('INV_COST_HIDDEN', 403, {
  en: 'Costs are shown to managers, so the order {sort} is theirs too.',
  fr: 'Les coûts sont réservés aux gestionnaires, donc l’ordre {sort} aussi.'
})
